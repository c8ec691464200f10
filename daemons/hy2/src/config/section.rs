//! Reads typed values out of a section and notes every mistake with its path.
//!
//! A getter never fails: it notes the mistake and returns the default, so that one pass over a
//! file finds all of them. The result counts only if nothing was noted.

use std::{cell::RefCell, fmt, ops::RangeInclusive, time::Duration};

use hy2_proto::bandwidth::Bandwidth;

use super::{duration, tree::Node};

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// The place in the file, such as `quic.maxIdleTimeout` or `tcpForwarding[0].listen`.
    pub(crate) path: String,
    /// What is wrong with it, without the value of a secret.
    pub(crate) reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of a file's own making, and one line all the same.
        for c in self.path.chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_debug())?,
                false => write!(f, "{c}")?,
            }
        }
        write!(f, ": {}", self.reason)
    }
}

/// Collects mistakes.
#[derive(Debug, Default)]
pub(super) struct Mistakes(RefCell<Vec<Mistake>>);

impl Mistakes {
    pub(super) fn note(&self, path: impl Into<String>, reason: impl Into<String>) {
        self.0.borrow_mut().push(Mistake {
            path: path.into(),
            reason: reason.into(),
        });
    }

    pub(super) fn into_inner(self) -> Vec<Mistake> {
        self.0.into_inner()
    }
}

/// What there may be below a key whose feature is missing here. A list has it below each item.
#[derive(Clone, Copy)]
pub(super) enum Keys {
    /// A value, or anything that is not looked into.
    Value,
    /// A section of these keys.
    Section(&'static [(&'static str, Self)]),
}

/// A section of a file while it is read.
pub(super) struct Section<'a> {
    path: String,
    entries: &'a [(String, Node)],
    asked: RefCell<Vec<&'static str>>,
    mistakes: &'a Mistakes,
}

impl<'a> Section<'a> {
    /// Reads the root of a file with `read`; keys it does not ask for are mistakes.
    pub(super) fn read_root<T>(
        root: &'a Node,
        mistakes: &'a Mistakes,
        read: impl FnOnce(&Self) -> T,
    ) -> T {
        Self::read_at(String::new(), root, mistakes, read)
    }

    fn read_at<T>(
        path: String,
        node: &'a Node,
        mistakes: &'a Mistakes,
        read: impl FnOnce(&Self) -> T,
    ) -> T {
        let entries = match node {
            Node::Map(entries) => entries.as_slice(),
            Node::Null => &[],
            other => {
                mistakes.note(
                    &*path,
                    format!("must be a section of keys, not {}", other.kind()),
                );
                &[]
            }
        };
        let section = Self {
            path,
            entries,
            asked: RefCell::default(),
            mistakes,
        };
        let value = read(&section);
        section.refuse_unknown();
        value
    }

    /// Reads a section below this one; a missing one reads as an empty one.
    pub(super) fn section<T>(&self, key: &'static str, read: impl FnOnce(&Self) -> T) -> T {
        let node = self.node(key).unwrap_or(&Node::Null);
        Section::read_at(self.path_of(key), node, self.mistakes, read)
    }

    /// Reads a section below this one if it is there.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Self) -> T,
    ) -> Option<T> {
        self.node(key).is_some().then(|| self.section(key, read))
    }

    /// Reads a list of sections.
    pub(super) fn list<T>(&self, key: &'static str, read: impl Fn(&Self) -> T) -> Vec<T> {
        match self.node(key) {
            None => Vec::new(),
            Some(Node::List(items)) => items
                .iter()
                .enumerate()
                .map(|(index, item)| {
                    let path = format!("{}[{index}]", self.path_of(key));
                    Section::read_at(path, item, self.mistakes, &read)
                })
                .collect(),
            Some(other) => {
                self.mistake(key, format!("must be a list, not {}", other.kind()));
                Vec::new()
            }
        }
    }

    /// Reads a section whose keys are free, such as users or headers, in the order of the file.
    pub(super) fn pairs(&self, key: &'static str) -> Vec<(String, String)> {
        match self.node(key) {
            None => Vec::new(),
            Some(Node::Map(entries)) => entries
                .iter()
                .filter_map(|(name, node)| {
                    let path = format!("{}.{name}", self.path_of(key));
                    Some((name.clone(), self.text_of(&path, node)?))
                })
                .collect(),
            Some(other) => {
                self.mistake(
                    key,
                    format!("must be a section of keys, not {}", other.kind()),
                );
                Vec::new()
            }
        }
    }

    /// Returns a text; an empty one counts as missing, as in the reference.
    pub(super) fn text(&self, key: &'static str) -> Option<String> {
        let node = self.node(key)?;
        self.text_of(&self.path_of(key), node)
            .filter(|text| !text.is_empty())
    }

    /// Returns a text that must be there; `what` says what is missing.
    pub(super) fn required(&self, key: &'static str, what: &str) -> Option<String> {
        let before = self.mistakes.0.borrow().len();
        let text = self.text(key);
        if text.is_none() && self.mistakes.0.borrow().len() == before {
            self.mistake(key, format!("missing: {what}"));
        }
        text
    }

    /// Returns a flag, `false` if it is missing.
    pub(super) fn flag(&self, key: &'static str) -> bool {
        match self.node(key) {
            None => false,
            Some(Node::Bool(value)) => *value,
            Some(Node::Integer(number @ (0 | 1))) => *number == 1,
            Some(Node::Text(text)) if text.is_empty() => false,
            Some(Node::Text(text)) => {
                let value = match text.as_str() {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
                    _ => None,
                };
                value.unwrap_or_else(|| {
                    self.mistake(key, format!("must be true or false, not {text:?}"));
                    false
                })
            }
            Some(other) => {
                self.mistake(key, format!("must be true or false, not {}", other.kind()));
                false
            }
        }
    }

    /// Returns a whole number. Missing and 0 mean the default, as in the reference.
    pub(super) fn number(
        &self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let number = match self.node(key) {
            None => return default,
            Some(Node::Integer(number)) => Some(*number),
            Some(Node::Text(text)) if text.is_empty() => return default,
            Some(Node::Text(text)) => text.parse().ok(),
            Some(_) => None,
        };
        let Some(number) = number else {
            self.mistake(key, "must be a whole number");
            return default;
        };
        match u64::try_from(number) {
            Ok(0) => default,
            Ok(number) if range.contains(&number) => number,
            _ if *range.end() == u64::MAX => {
                self.mistake(
                    key,
                    format!("must be at least {}, not {number}", range.start()),
                );
                default
            }
            _ => {
                let (low, high) = range.into_inner();
                self.mistake(key, format!("must be from {low} to {high}, not {number}"));
                default
            }
        }
    }

    /// Returns a duration such as `1m30s`. Missing and 0 mean the default, as in the reference.
    pub(super) fn duration(
        &self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.optional_duration(key, range).unwrap_or(default)
    }

    /// Returns a duration that has no default.
    pub(super) fn optional_duration(
        &self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let text = match self.node(key)? {
            Node::Integer(0) => return None,
            Node::Integer(number) => {
                self.mistake(
                    key,
                    format!("a duration needs a unit, such as \"{number}s\""),
                );
                return None;
            }
            Node::Text(text) if text.is_empty() => return None,
            Node::Text(text) => text,
            other => {
                let kind = other.kind();
                self.mistake(
                    key,
                    format!("must be a duration such as \"30s\", not {kind}"),
                );
                return None;
            }
        };
        match duration::parse(text) {
            Ok(Duration::ZERO) => None,
            Ok(value) if range.contains(&value) => Some(value),
            Ok(_) => {
                let (low, high) = (range.start().as_secs(), *range.end());
                let reason = if high == Duration::MAX {
                    format!("must be at least {low}s, not {text}")
                } else {
                    format!("must be from {low}s to {}s, not {text}", high.as_secs())
                };
                self.mistake(key, reason);
                None
            }
            Err(reason) => {
                self.mistake(key, format!("{reason}, not {text:?}"));
                None
            }
        }
    }

    /// Returns a bandwidth such as `100 mbps`. Missing, empty and 0 mean none.
    pub(super) fn bandwidth(&self, key: &'static str) -> Option<Bandwidth> {
        match self.node(key)? {
            Node::Integer(0) => None,
            Node::Integer(number) => {
                self.mistake(
                    key,
                    format!("a bandwidth needs a unit, such as \"{number} mbps\""),
                );
                None
            }
            Node::Text(text) if text.is_empty() || text == "0" => None,
            Node::Text(text) => match text.parse::<Bandwidth>() {
                Ok(value) => Some(value).filter(|value| !value.is_zero()),
                Err(error) => {
                    self.mistake(key, format!("{error}, not {text:?}"));
                    None
                }
            },
            other => {
                let kind = other.kind();
                self.mistake(
                    key,
                    format!("must be a bandwidth such as \"100 mbps\", not {kind}"),
                );
                None
            }
        }
    }

    /// Returns one of several named values; `names` begins with the default. `None` if it was
    /// none of them.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, names: &[(&str, T)]) -> Option<T> {
        let default = names.first().map(|(_, value)| *value);
        let Some(text) = self.text(key) else {
            return default;
        };
        let found = names
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(&text));
        if found.is_none() {
            let names: Vec<_> = names
                .iter()
                .map(|(name, _)| *name)
                .filter(|name| !name.is_empty())
                .collect();
            let hint = closest(&text, &names)
                .map(|name| format!("; did you mean {name:?}?"))
                .unwrap_or_default();
            let rule = match names.as_slice() {
                [only] => format!("must be {only}"),
                several => format!("must be one of {}", several.join(", ")),
            };
            self.mistake(key, format!("{rule}, not {text:?}{hint}"));
        }
        found.map(|(_, value)| *value)
    }

    /// Parses a text that is no secret.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        text: Option<String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = text?;
        parse(&text)
            .map_err(|reason| self.mistake(key, format!("{reason}, not {text:?}")))
            .ok()
    }

    /// Refuses a key that asks for something this version does not do. `is_off` tells the values
    /// that ask for nothing; `reason` says what is not done.
    pub(super) fn refuse(
        &self,
        key: &'static str,
        is_off: impl FnOnce(&Node) -> bool,
        reason: &str,
    ) {
        if let Some(node) = self.node(key)
            && !node.is_off()
            && !is_off(node)
        {
            self.mistake(key, format!("not supported in this version: {reason}"));
        }
    }

    /// Refuses a section like [`Section::refuse`]. One that asks for nothing may only have the
    /// reference's `keys`: what asks for something with a slip of the pen must not be ignored.
    pub(super) fn refuse_section(
        &self,
        key: &'static str,
        keys: &'static [(&'static str, Keys)],
        is_off: impl FnOnce(&Node) -> bool,
        reason: &str,
    ) {
        let Some(node) = self.node(key) else {
            return;
        };
        if node.is_off() || is_off(node) {
            self.know(&self.path_of(key), node, Keys::Section(keys));
        } else {
            self.mistake(key, format!("not supported in this version: {reason}"));
        }
    }

    /// Accepts a section that has no meaning as long as it has only the reference's `keys`.
    pub(super) fn ignore_section(&self, key: &'static str, keys: &'static [(&'static str, Keys)]) {
        if let Some(node) = self.node(key) {
            self.know(&self.path_of(key), node, Keys::Section(keys));
        }
    }

    /// Notes the keys at and below `path` that the reference does not have.
    fn know(&self, path: &str, node: &Node, keys: Keys) {
        let Keys::Section(keys) = keys else {
            return;
        };
        match node {
            Node::Map(entries) => {
                let names: Vec<_> = keys.iter().map(|(name, _)| *name).collect();
                for (name, node) in entries {
                    let path = format!("{path}.{name}");
                    match keys.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)) {
                        Some((_, keys)) => self.know(&path, node, *keys),
                        None => self.mistakes.note(path, unknown(name, &names)),
                    }
                }
            }
            Node::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.know(&format!("{path}[{index}]"), item, Keys::Section(keys));
                }
            }
            Node::Null => {}
            other => self.mistakes.note(
                path,
                format!("must be a section of keys, not {}", other.kind()),
            ),
        }
    }

    /// Notes a mistake in a value of this section.
    pub(super) fn mistake(&self, key: &str, reason: impl Into<String>) {
        self.mistakes.note(self.path_of(key), reason);
    }

    /// Notes a mistake of the section itself.
    pub(super) fn own_mistake(&self, reason: impl Into<String>) {
        self.mistakes.note(&*self.path, reason);
    }

    /// Tells whether a key has a value.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.node(key).is_some()
    }

    /// Returns the value of a key; nothing (`key:` alone) counts as missing.
    fn node(&self, key: &'static str) -> Option<&'a Node> {
        self.asked.borrow_mut().push(key);
        self.entries
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, node)| node)
            .filter(|node| **node != Node::Null)
    }

    fn text_of(&self, path: &str, node: &Node) -> Option<String> {
        match node {
            Node::Text(text) => Some(text.clone()),
            Node::Integer(number) => Some(number.to_string()),
            Node::Bool(value) => Some(value.to_string()),
            Node::Null => Some(String::new()),
            // The spelling is lost, and a password must not change by being read.
            Node::Float(_) => {
                self.mistakes
                    .note(path, "put this value in quotes; it reads as a fraction");
                None
            }
            other => {
                self.mistakes
                    .note(path, format!("must be text, not {}", other.kind()));
                None
            }
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn refuse_unknown(&self) {
        let asked = self.asked.borrow();
        for (name, _) in self.entries {
            if asked.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                continue;
            }
            self.mistake(name, unknown(name, &asked));
        }
    }
}

/// Says that a key is none of the `known` ones, and which it may have been meant to be.
fn unknown(name: &str, known: &[&str]) -> String {
    let hint = closest(name, known)
        .map(|known| format!("; did you mean {known:?}?"))
        .unwrap_or_default();
    format!("unknown key{hint}")
}

/// Returns the name nearest to `word`, if it is near enough to be what was meant.
fn closest<'n>(word: &str, names: &[&'n str]) -> Option<&'n str> {
    let word = word.to_ascii_lowercase();
    let (distance, name) = names
        .iter()
        .map(|name| (distance(&word, &name.to_ascii_lowercase()), *name))
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + name.len() / 4 && distance < word.len()).then_some(name)
}

/// Edits between two words: insert, delete, replace, or swap two neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_one_line_whatever_the_key() {
        let mistake = Mistake {
            path: "resolver.ty\n\u{1b}pe".to_owned(),
            reason: "unknown key".to_owned(),
        };
        assert_eq!(mistake.to_string(), "resolver.ty\\n\\u{1b}pe: unknown key");
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let names = ["listen", "auth", "bandwidth", "udpIdleTimeout"];
        for (word, name) in [
            ("lisen", Some("listen")),
            ("lsiten", Some("listen")),
            ("bandwith", Some("bandwidth")),
            ("udpIdleTimout", Some("udpIdleTimeout")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(closest(word, &names), name, "{word}");
        }
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abcd", "acbd"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
