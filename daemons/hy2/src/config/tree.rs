//! A configuration file as a tree of plain values, whichever of the two formats it is in.

use std::{fmt, path::Path};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// One value of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl Node {
    /// Names the kind of the value for a message. The value itself may be a secret.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) => "a number",
            Self::Float(_) => "a fraction",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a section",
        }
    }

    /// Looks a key of a section up; case does not matter, as in the reference.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(key))
                .map(|(_, node)| node),
            _ => None,
        }
    }

    /// Tells whether the value asks for nothing: empty, zero, false, or made of such values.
    pub(super) fn is_off(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(on) => !on,
            Self::Integer(number) => *number == 0,
            Self::Float(number) => *number == 0.0,
            Self::Text(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Map(entries) => entries.iter().all(|(_, node)| node.is_off()),
        }
    }
}

/// The format of a file, told by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Yaml,
    Json,
}

impl Format {
    /// Everything that is not JSON by name is read as YAML. Formats that are neither are refused.
    pub(super) fn of(path: &Path) -> Result<Self, &'static str> {
        let extension = path.extension().and_then(|name| name.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("json") => Ok(Self::Json),
            Some("toml" | "ini" | "hcl" | "env" | "properties") => {
                Err("configuration files are YAML or JSON")
            }
            _ => Ok(Self::Yaml),
        }
    }
}

/// Parses a whole file. An empty one is an empty section.
///
/// # Errors
///
/// One line that says where the syntax is broken.
pub(super) fn parse(text: &str, format: Format) -> Result<Node, String> {
    let node = match format {
        Format::Json => serde_json::from_str(text).map_err(|error| json_reason(&error))?,
        Format::Yaml => {
            // Bare words keep their spelling unless they are plainly numbers or booleans: a
            // password 0123 or "yes" is not to become another one.
            let options = serde_saphyr::options! {
                leading_zero_numbers_as_strings: true,
                underscored_numbers_as_strings: true,
                strict_booleans: true,
                with_snippet: false,
                // The visitor below refuses them, whatever their case.
                duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
            };
            let node: Option<Node> = serde_saphyr::from_str_with_options(text, options)
                .map_err(|error| yaml_reason(&error))?;
            node.unwrap_or(Node::Null)
        }
    };
    match node {
        Node::Map(_) => Ok(node),
        Node::Null => Ok(Node::Map(Vec::new())),
        other => Err(format!(
            "the file must be a section of keys, not {}",
            other.kind()
        )),
    }
}

/// Keeps what the parser says, without its position, which is put in front.
fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = text.strip_suffix(&place).unwrap_or(&text);
    format!("line {}, column {}: {reason}", error.line(), error.column())
}

fn yaml_reason(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    // A parser's text may go on with an excerpt of the file, which may hold secrets.
    let first = text.lines().next().unwrap_or_default().trim();
    let Some(location) = error.location() else {
        return first.to_owned();
    };
    let (line, column) = (location.line(), location.column());
    let reason = first
        .trim_start_matches("error: ")
        .trim_start_matches(&format!("line {line} column {column}: "))
        .trim_end_matches(&format!(" at line {line}, column {column}"));
    // The parser goes on with what a programmer may call.
    let reason = match reason.split_once("multiple YAML documents") {
        Some(_) => "the file holds more than one document",
        None => reason,
    };
    format!("line {line}, column {column}: {reason}")
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Integer(value))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Node, E> {
        i128::try_from(value)
            .map(Node::Integer)
            .map_err(|_| E::custom("the number is too large"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map: Vec<(String, Node)> = Vec::new();
        while let Some(key) = entries.next_key::<Key>()? {
            if map
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case(&key.0))
            {
                return Err(de::Error::custom(format_args!(
                    "key {:?} is given twice",
                    key.0
                )));
            }
            map.push((key.0, entries.next_value()?));
        }
        Ok(Node::Map(map))
    }
}

/// A key; numbers and booleans are taken by their text (a user may be called 123).
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Node::deserialize(deserializer)? {
            Node::Text(text) => Ok(Self(text)),
            Node::Integer(number) => Ok(Self(number.to_string())),
            Node::Bool(value) => Ok(Self(value.to_string())),
            other => Err(de::Error::custom(format_args!(
                "a key must be text, not {}",
                other.kind()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Node {
        Node::Text(text.into())
    }

    #[test]
    fn both_formats_give_the_same_tree() {
        let yaml = parse("a: 1\nb: [true, x]\nc:\n  d: null\n", Format::Yaml);
        let json = parse(
            r#"{"a": 1, "b": [true, "x"], "c": {"d": null}}"#,
            Format::Json,
        );
        assert_eq!(yaml, json);
        assert_eq!(
            yaml,
            Ok(Node::Map(vec![
                ("a".into(), Node::Integer(1)),
                ("b".into(), Node::List(vec![Node::Bool(true), text("x")])),
                ("c".into(), Node::Map(vec![("d".into(), Node::Null)])),
            ]))
        );
    }

    #[test]
    fn bare_words_keep_their_spelling() {
        let tree = parse("a: 0123\nb: yes\nc: 1_000\nd: 30s\ne: '1'\n", Format::Yaml);
        let tree = tree.expect("valid");
        for (key, value) in [
            ("a", "0123"),
            ("b", "yes"),
            ("c", "1_000"),
            ("d", "30s"),
            ("e", "1"),
        ] {
            assert_eq!(tree.get(key), Some(&text(value)), "{key}");
        }
    }

    #[test]
    fn empty_files_are_empty_sections_and_other_values_are_not_files() {
        assert_eq!(parse("", Format::Yaml), Ok(Node::Map(vec![])));
        assert_eq!(parse("# nothing\n", Format::Yaml), Ok(Node::Map(vec![])));
        for (file, format) in [
            ("- a\n", Format::Yaml),
            ("[1]", Format::Json),
            ("7", Format::Yaml),
        ] {
            assert!(parse(file, format).is_err(), "{file}");
        }
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let before = format!("*a{},", level - 1).repeat(10);
            bomb += &format!("a{level}: &a{level} [{before}]\n");
        }
        assert!(parse(&bomb, Format::Yaml).is_err());
        let deep = "[".repeat(100_000);
        assert!(parse(&deep, Format::Yaml).is_err());
        assert!(parse(&deep, Format::Json).is_err());
    }
}
