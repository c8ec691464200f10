//! Configuration files: YAML, and mistakes in one line that repeats nothing of the file.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_saphyr::Error;

/// Reads a YAML file.
///
/// # Errors
///
/// The file cannot be read, or says what makes no sense: one line with its name, the place, the
/// path of the key and the reason. Excerpts are left out: the next line may hold a password.
pub fn configuration<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    configuration_text(&text).map_err(|reason| anyhow!("{}: {reason}", path.display()))
}

/// Reads the text of a YAML file.
///
/// # Errors
///
/// As [`configuration`], without the file's name.
pub fn configuration_text<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let mut key = String::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |file| {
        serde_path_to_error::deserialize(file).map_err(|error| {
            key = error.path().to_string();
            error.into_inner()
        })
    });
    read.map_err(|error: Error| {
        if let Ok(None) = serde_saphyr::from_str::<Option<IgnoredAny>>(text) {
            return "the file has no settings".to_owned();
        }
        let said = reason(error.without_snippet());
        // Between two keys, the path ends with one that is not known yet.
        match key.trim_end_matches(['.', '?']) {
            "" => one_line(&said),
            key => one_line(&format!("{key}: {said}")),
        }
    })
}

/// A key is of the file's own making, and a mistake one line all the same.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_debug()),
            false => line.push(c),
        }
    }
    line
}

/// Says what is wrong, also where the parser speaks to who calls it.
fn reason(error: &Error) -> String {
    match error {
        Error::DuplicateMappingKey { key, location } => {
            let key = key
                .as_ref()
                .map_or_else(String::new, |key| format!(" {key:?}"));
            format!("line {}: key{key} is given twice", location.line())
        }
        Error::MultipleDocuments { location, .. } => format!(
            "line {}: the file holds more than one document",
            location.line()
        ),
        other => {
            let said = other.to_string();
            let said = said.lines().next().unwrap_or_default();
            said.trim().trim_start_matches("error: ").to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct File {
        database: String,
        api: Api,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Api {
        listen: std::net::SocketAddr,
        proxies: Vec<u16>,
    }

    #[test]
    fn mistakes_are_one_line_with_the_key_and_without_the_neighbours() {
        let secret = "database: postgres://hy2:hunter2@db/hy2\n";
        for (rest, wanted) in [
            ("keyfile: x\n", "keyfile"),
            ("api: {listen: nowhere, proxies: []}\n", "api.listen"),
            (
                "api: {listen: '1.2.3.4:5', proxies: [1, x]}\n",
                "api.proxies[1]",
            ),
            ("api: {listen: '1.2.3.4:5'}\n", "proxies"),
            ("api: null\n", "api"),
            ("api: {listen: '1.2.3.4:5', proxies: [1\n", "line"),
            ("\"a\\e[2Jb\\nc\": 1\n", "a\\u{1b}[2Jb\\nc: "),
            (
                "api: {listen: '1.2.3.4:5', proxies: []}\n---\na: b\n",
                "document",
            ),
            ("database: two\n", "line 2: key \"database\" is given twice"),
            (
                "api: {listen: '1.2.3.4:5', proxies: [], listen: x}\n",
                "api: line 2: key \"listen\" is given twice",
            ),
        ] {
            let error = configuration_text::<File>(&format!("{secret}{rest}")).expect_err(rest);
            assert!(error.contains(wanted), "{wanted} not in {error}");
            assert!(
                !error.contains("hunter2") && !error.contains(char::is_control),
                "{error}"
            );
            assert!(
                !["Policy", "from_", "Options"]
                    .iter()
                    .any(|word| error.contains(word)),
                "{error} is for who writes programs"
            );
        }
    }

    #[test]
    fn a_file_without_settings_is_said_to_be_one() {
        for text in [
            "",
            "\n\n",
            "# nothing yet\n",
            "---\n",
            "---\n...\n",
            "null\n",
            "~\n",
        ] {
            let error = configuration_text::<File>(text).expect_err(text);
            assert_eq!(error, "the file has no settings", "{text:?}");
        }
    }
}
