//! User name and password of a local proxy.

use std::fmt;

use subtle::ConstantTimeEq;

/// A user name and password that local programs must show.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: String,
    password: String,
}

impl Credentials {
    /// Creates credentials. SOCKS5 carries at most 255 bytes of each (RFC 1929 §2).
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: password.into(),
        }
    }

    /// Compares in a time that depends on lengths only.
    pub(super) fn matches(&self, username: &[u8], password: &[u8]) -> bool {
        let username = self.username.as_bytes().ct_eq(username);
        let password = self.password.as_bytes().ct_eq(password);
        (username & password).into()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &"***")
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_must_match() {
        let right = Credentials::new("john", "wick");
        assert!(right.matches(b"john", b"wick"));
        for (name, password) in [("john", "wic"), ("joh", "wick"), ("", ""), ("wick", "john")] {
            assert!(!right.matches(name.as_bytes(), password.as_bytes()));
        }
    }

    #[test]
    fn the_password_is_not_printed() {
        let text = format!("{:?}", Credentials::new("john", "wick"));
        assert!(text.contains("john") && !text.contains("wick"), "{text}");
    }
}
