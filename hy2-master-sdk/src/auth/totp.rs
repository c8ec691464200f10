//! Second factor: time-based one-time passwords (RFC 6238; SHA-1, six digits, 30 s).

use totp_rs::{Algorithm, Builder, Secret, Totp};

/// Length of a secret in bytes (RFC 4226 §4 recommends 160 bits).
pub const SECRET_LEN: usize = 20;

/// The secret does not have the length that RFC 4226 asks for, or a name cannot be in a URI.
#[derive(Debug, thiserror::Error)]
#[error("not a usable one-time password secret")]
pub struct TotpError;

/// A secret with the steps that are already spent.
#[derive(Debug)]
pub struct SecondFactor {
    totp: Totp,
}

impl SecondFactor {
    /// Makes a new secret for an account.
    ///
    /// # Errors
    ///
    /// [`TotpError`] if the names cannot be part of an `otpauth` URI.
    pub fn generate(issuer: &str, account: &str) -> Result<Self, TotpError> {
        Self::new(&rand::random::<[u8; SECRET_LEN]>(), issuer, account)
    }

    /// Takes a stored secret.
    ///
    /// # Errors
    ///
    /// [`TotpError`] if it is too short, or a name cannot be part of an `otpauth` URI.
    pub fn new(secret: &[u8], issuer: &str, account: &str) -> Result<Self, TotpError> {
        let totp = Builder::new()
            .with_algorithm(Algorithm::SHA1)
            .with_digits(6)
            .with_skew(1)
            .with_step_duration(30)
            .with_secret(Secret::from(secret))
            .with_account_name(account)
            .with_issuer(Some(issuer))
            .build()
            .map_err(|_| TotpError)?;
        Ok(Self { totp })
    }

    /// Returns the secret, for the encrypted store.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        self.totp.secret().as_ref()
    }

    /// Returns the secret in base32, for typing.
    #[must_use]
    pub fn secret_base32(&self) -> String {
        self.totp.secret().to_base32()
    }

    /// Returns the `otpauth://` URI that authenticator programs read.
    ///
    /// # Errors
    ///
    /// [`TotpError`] if the names cannot be part of a URI.
    pub fn uri(&self) -> Result<String, TotpError> {
        self.totp.to_url().map_err(|_| TotpError)
    }

    /// Returns the step that `code` is for, if it is right at `now` (seconds since 1970, one step
    /// of tolerance) and later than `last_step`. The caller stores the step with a compare and
    /// set, so that a code opens one session only.
    #[must_use]
    pub fn check(&self, code: &str, now: i64, last_step: i64) -> Option<i64> {
        if code.len() != 6 || !code.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let step = self.totp.check(code, u64::try_from(now).ok()?)?;
        let step = i64::try_from(step).ok()?;
        (step > last_step).then_some(step)
    }

    /// Returns the code at `now` (seconds since 1970).
    #[must_use]
    pub fn code(&self, now: i64) -> String {
        self.totp
            .generate(u64::try_from(now).unwrap_or(0))
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238 appendix B, the last six of eight digits.
    #[test]
    fn codes_are_those_of_the_rfc() {
        let factor = SecondFactor::new(b"12345678901234567890", "hy2", "a").unwrap();
        for (at, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (2_000_000_000, "279037"),
        ] {
            assert_eq!(factor.code(at), code);
            assert_eq!(factor.check(code, at, 0), Some(at / 30));
        }
    }

    #[test]
    fn a_spent_step_and_earlier_ones_are_refused() {
        let factor = SecondFactor::generate("hy2", "a").unwrap();
        let now = 1_800_000_000;
        let step = factor.check(&factor.code(now), now, 0).unwrap();
        assert_eq!(factor.check(&factor.code(now), now, step), None);
        assert_eq!(factor.check(&factor.code(now - 30), now, step), None);
        assert_eq!(
            factor.check(&factor.code(now + 30), now, step),
            Some(step + 1)
        );
        assert_eq!(factor.check(&factor.code(now + 90), now, step), None);
    }

    #[test]
    fn what_is_no_code_is_refused() {
        let factor = SecondFactor::generate("hy2", "a").unwrap();
        for code in [
            "",
            "12345",
            "1234567",
            "12 456",
            "abcdef",
            "١٢٣٤٥٦",
            "-12345",
            "+12345",
        ] {
            assert_eq!(factor.check(code, 1_800_000_000, 0), None, "{code}");
        }
    }
}
