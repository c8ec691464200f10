//! Configuration files: YAML, and mistakes in one line that repeats nothing of the file.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;

/// Reads a YAML file.
///
/// # Errors
///
/// The file cannot be read, or says what makes no sense: one line with its name, the place, the
/// path of the key and the reason. Excerpts are left out: the next line may hold a password.
pub fn configuration<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).map_err(|reason| anyhow!("{}: {reason}", path.display()))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let mut key = String::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |file| {
        serde_path_to_error::deserialize(file).map_err(|error| {
            key = error.path().to_string();
            error.into_inner()
        })
    });
    read.map_err(|error: serde_saphyr::Error| {
        let said = error.without_snippet().to_string();
        let said = said.lines().next().unwrap_or_default();
        let said = said.trim().trim_start_matches("error: ");
        match key.as_str() {
            "" | "." => said.to_owned(),
            key => format!("{key}: {said}"),
        }
    })
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
            (
                "api: {listen: '1.2.3.4:5', proxies: []}\n---\na: b\n",
                "document",
            ),
            ("database: two\n", "database"),
        ] {
            let error = parse::<File>(&format!("{secret}{rest}")).expect_err(rest);
            assert!(error.contains(wanted), "{wanted} not in {error}");
            assert!(
                !error.contains("hunter2") && !error.contains('\n'),
                "{error}"
            );
        }
    }
}
