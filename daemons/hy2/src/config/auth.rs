//! `auth` of a server: who may connect.

use std::collections::HashSet;

use super::{
    Secret,
    section::{Keys, Section},
};

/// How clients are recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Auth {
    /// One password for everyone.
    Password(Secret),
    /// A password per user; names are lower case, as the reference makes them.
    UserPass(Vec<(String, Secret)>),
}

#[derive(Clone, Copy)]
enum Kind {
    None,
    Password,
    UserPass,
}

pub(super) fn read(section: &Section<'_>) -> Option<Auth> {
    let elsewhere = match section
        .text("type")
        .map(|kind| kind.to_lowercase())
        .as_deref()
    {
        Some("http" | "https") => Some("authentication by HTTP"),
        Some("command" | "cmd") => Some("authentication by a command"),
        _ => None,
    };
    let names = [
        ("", Kind::None),
        ("password", Kind::Password),
        ("userpass", Kind::UserPass),
    ];
    let kind = match elsewhere {
        None => section.choice("type", &names),
        Some(what) => {
            section.mistake("type", format!("not supported in this version: {what}"));
            None
        }
    };
    // Settings of the kinds that were not chosen may stay in a file.
    let users = section.pairs("userpass");
    section.ignore_section("http", &[("url", Keys::Value), ("insecure", Keys::Value)]);
    section.has("command");
    if !matches!(kind, Some(Kind::Password)) {
        section.has("password");
    }
    match kind? {
        Kind::None => {
            section.mistake(
                "type",
                "missing: how clients authenticate (password or userpass)",
            );
            None
        }
        Kind::Password => section
            .required("password", "the password that clients show")
            .map(|password| Auth::Password(password.into())),
        Kind::UserPass => {
            if users.is_empty() {
                section.mistake("userpass", "missing: users and their passwords");
            }
            let mut names = HashSet::new();
            for (name, password) in &users {
                let key = format!("userpass.{name}");
                if !names.insert(name.to_lowercase()) {
                    section.mistake(&key, "is given twice: names must differ in more than case");
                }
                if name.is_empty() || name.contains(':') {
                    section.mistake(&key, "a user name must not be empty or contain a colon");
                }
                if password.is_empty() {
                    section.mistake(&key, "the password is empty");
                }
            }
            let users = users.into_iter();
            Some(Auth::UserPass(
                users
                    .map(|(name, password)| (name.to_lowercase(), password.into()))
                    .collect(),
            ))
        }
    }
}
