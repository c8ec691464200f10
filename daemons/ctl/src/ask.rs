//! What only a person at a terminal can answer, or a file or the environment instead of them.

use std::{
    io::{self, IsTerminal, Read},
    path::Path,
};

use anyhow::Context;
use dialoguer::{Confirm, Input, Password};
use zeroize::Zeroizing;

use crate::failure::Failure;

/// A secret that is never on the command line.
pub(crate) type Secret = Zeroizing<String>;

/// Returns whether somebody can be asked.
pub(crate) fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Takes a secret from a file (`-`: standard input), from the environment, or from the person.
pub(crate) fn secret(
    what: &str,
    file: Option<&Path>,
    variable: &str,
    twice: bool,
) -> Result<Secret, Failure> {
    if let Some(file) = file {
        return read(file).map_err(Failure::from);
    }
    if let Some(value) = std::env::var(variable)
        .ok()
        .filter(|value| !value.is_empty())
    {
        return Ok(Zeroizing::new(value));
    }
    if !is_terminal() {
        return Err(Failure::Usage(format!(
            "no {what}: give it in a file, on standard input, or in {variable}"
        )));
    }
    let mut question = Password::new().with_prompt(capital(what));
    if twice {
        question = question.with_confirmation("Once more", "They are not the same");
    }
    let answer = question.interact().context("terminal")?;
    Ok(Zeroizing::new(answer))
}

/// Takes a text from the person.
pub(crate) fn text(what: &str, flag: &str) -> Result<String, Failure> {
    if !is_terminal() {
        return Err(Failure::Usage(format!("no {what}: give it with {flag}")));
    }
    let answer = Input::<String>::new()
        .with_prompt(capital(what))
        .interact_text();
    Ok(answer.context("terminal")?)
}

/// Asks whether it shall be done; without anybody to ask, `yes` is needed.
pub(crate) fn confirm(yes: bool, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !is_terminal() {
        return Err(Failure::Usage(format!("{what}? Say so with --yes")));
    }
    let answer = Confirm::new()
        .with_prompt(format!("{what}?"))
        .default(false)
        .interact()
        .context("terminal")?;
    match answer {
        true => Ok(()),
        false => Err(Failure::Usage("not confirmed, nothing was done".to_owned())),
    }
}

fn read(file: &Path) -> anyhow::Result<Secret> {
    let mut text = Zeroizing::new(String::new());
    if file == Path::new("-") {
        io::stdin()
            .read_to_string(&mut text)
            .context("standard input")?;
    } else {
        *text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
    }
    let line = text.lines().next().unwrap_or_default();
    anyhow::ensure!(!line.is_empty(), "{} is empty", file.display());
    Ok(Zeroizing::new(line.to_owned()))
}

fn capital(what: &str) -> String {
    let mut letters = what.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}
