//! One's own account.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use crate::{
    ask::{self, Secret, confirm},
    cli::Common,
    client::{Client, Keeper},
    failure::Failure,
    output::Output,
    profile::{Profile, Profiles},
    tls,
};

/// Opens a session, or keeps an API token.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Where the orchestrator's API is; absent: as in the profile
    #[arg(long, value_name = "URL", env = "HY2CTL_URL")]
    url: Option<String>,

    /// Name of the account
    #[arg(long, value_name = "NAME", env = "HY2CTL_USERNAME")]
    username: Option<String>,

    /// File with the password, "-" for standard input; else HY2CTL_PASSWORD or a question
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Code of the second factor
    #[arg(long, value_name = "DIGITS", env = "HY2CTL_CODE")]
    code: Option<String>,

    /// Use an API token from this file, "-" for standard input, and no password
    #[arg(long, value_name = "FILE", conflicts_with_all = ["username", "password_file", "code"])]
    token_file: Option<PathBuf>,

    /// Authorities in PEM that the orchestrator's certificate has to come from
    #[arg(long, value_name = "FILE", env = "HY2CTL_CA")]
    ca: Option<PathBuf>,

    /// Public key of the orchestrator's certificate or of its authority, `sha256:HEX`
    #[arg(long, value_name = "PIN", conflicts_with = "ca", env = "HY2CTL_CA_PIN")]
    ca_pin: Option<String>,
}

impl Login {
    pub(crate) async fn run(self, common: &Common, output: &Output) -> Result<(), Failure> {
        let profiles = Profiles::at(common.profiles.clone())?;
        let known = profiles.find(&common.profile())?.unwrap_or_default();
        let url = match self.url {
            Some(url) => url,
            None if known.url.is_empty() => ask::text("address of the orchestrator", "--url")?,
            None => known.url.clone(),
        };
        // What proves one address says nothing of another.
        let same = url == known.url;
        let ca = self.ca.as_deref().map(read_ca).transpose()?;
        if let Some(pin) = &self.ca_pin {
            tls::read_pin(pin).map_err(|error| Failure::Usage(format!("--ca-pin: {error}")))?;
        }
        let chosen = ca.is_some() || self.ca_pin.is_some();
        let mut profile = Profile {
            url,
            ca: ca.or_else(|| known.ca.clone().filter(|_| same && !chosen)),
            pin: self
                .ca_pin
                .or_else(|| known.pin.clone().filter(|_| same && !chosen)),
            ..Profile::default()
        };
        if let Some(file) = &self.token_file {
            profile.api_token = Some(ask::secret("token", Some(file), "", false)?.to_string());
            let me = match Client::new(&profile, None)?.get("/auth/me", &[]).await {
                // It is known, and may not ask whose it is.
                Err(Failure::Problem(problem)) if problem.code == "forbidden" => {
                    profiles.put(&common.profile(), profile)?;
                    let text = "token kept; it has no account:read, so it does not say whose it is";
                    return output.done(&json!({"kept": true}), text);
                }
                me => me?,
            };
            profile.username = me["username"].as_str().map(str::to_owned);
            profiles.put(&common.profile(), profile)?;
            return greet(output, &me);
        }
        let username = match self.username.or_else(|| known.username.filter(|_| same)) {
            Some(username) => username,
            None => ask::text("username", "--username")?,
        };
        let file = self.password_file.as_deref();
        let password = ask::secret("password", file, "HY2CTL_PASSWORD", false)?;
        let me = log_in(&profiles, common, profile, &username, &password, self.code).await?;
        greet(output, &me)?;
        if me["must_change_password"] == true {
            output.note("this password is for the first login only: hy2ctl passwd");
        }
        Ok(())
    }
}

fn greet(output: &Output, me: &Value) -> Result<(), Failure> {
    let text = |key: &str| me[key].as_str().unwrap_or_default().to_owned();
    output.done(
        me,
        &format!("logged in as {} ({})", text("username"), text("role")),
    )
}

/// Opens a session and keeps it. Returns whose it is.
async fn log_in(
    profiles: &Profiles,
    common: &Common,
    mut profile: Profile,
    username: &str,
    password: &Secret,
    mut code: Option<String>,
) -> Result<Value, Failure> {
    let client = Client::new(&profile, None)?;
    let answer = loop {
        match client.log_in(username, password, code.as_deref()).await? {
            Some(answer) => break answer,
            None => code = Some(ask::text("one-time code", "--code")?),
        }
    };
    profile.username = Some(username.to_owned());
    profile.session = client.session();
    profiles.put(&common.profile(), profile)?;
    Ok(answer["admin"].clone())
}

/// Ends the session and forgets the profile, also when the orchestrator does not answer.
pub(crate) async fn log_out(common: &Common, output: &Output) -> Result<(), Failure> {
    let profiles = Profiles::at(common.profiles.clone())?;
    let name = common.profile();
    let Some(profile) = profiles.find(&name)? else {
        return Err(Failure::NotLoggedIn(format!("there is no profile {name}")));
    };
    let ended = match profile.session {
        None => Ok(Value::Null),
        Some(_) => {
            let keeper = Keeper {
                profiles: profiles.clone(),
                name: name.clone(),
            };
            let client = Client::new(&profile, Some(keeper))?;
            client.post("/auth/logout", &json!({})).await
        }
    };
    profiles.remove(&name)?;
    match ended {
        Err(failure) if failure.exit_code() != 3 => {
            output.note(&format!("the orchestrator was not told: {failure}"));
        }
        _ => {}
    }
    output.done(&json!({"logged_out": true}), "logged out")
}

/// Chooses a new password.
#[derive(Debug, Args)]
pub(crate) struct Passwd {
    /// File with the password in force, "-" for standard input; else HY2CTL_PASSWORD or a question
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// File with the new one; else HY2CTL_NEW_PASSWORD or a question
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,

    /// Code of the second factor, for the session that follows
    #[arg(long, value_name = "DIGITS", env = "HY2CTL_CODE")]
    code: Option<String>,
}

impl Passwd {
    pub(crate) async fn run(self, common: &Common, output: &Output) -> Result<(), Failure> {
        let profiles = Profiles::at(common.profiles.clone())?;
        let name = common.profile();
        let profile = profiles
            .find(&name)?
            .filter(|profile| profile.session.is_some());
        let profile = profile.ok_or_else(|| {
            Failure::NotLoggedIn("log in with the password in force first: hy2ctl login".to_owned())
        })?;
        let username = profile.username.clone().unwrap_or_default();
        let file = self.password_file.as_deref();
        let old = ask::secret("password in force", file, "HY2CTL_PASSWORD", false)?;
        let file = self.new_password_file.as_deref();
        let new = ask::secret("new password", file, "HY2CTL_NEW_PASSWORD", true)?;
        let keeper = Keeper {
            profiles: profiles.clone(),
            name,
        };
        let client = Client::new(&profile, Some(keeper))?;
        let change = json!({"old": old.as_str(), "new": new.as_str()});
        client.post("/auth/password", &change).await?;
        // A changed password ends every session, this one too.
        let me = log_in(&profiles, common, profile, &username, &new, self.code).await?;
        output.done(&me, "the password is changed")
    }
}

/// The second factor.
#[derive(Debug, Subcommand)]
pub(crate) enum Totp {
    /// Make a secret for an authenticator; in force once a code of it is confirmed
    Begin {
        /// As a QR code too
        #[arg(long)]
        qr: bool,
    },
    /// Confirm with a code of the authenticator; needed at each login from then on
    Confirm {
        /// Six digits
        code: String,
    },
    /// Remove the second factor
    Remove {
        /// Six digits
        code: String,
    },
}

impl Totp {
    pub(crate) async fn run(
        self,
        common: &Common,
        client: &Client,
        output: &Output,
    ) -> Result<(), Failure> {
        match self {
            Self::Begin { qr } => {
                let made = client.post("/auth/totp", &json!({})).await?;
                output.record(&made)?;
                if qr && !output.is_json() {
                    output.qr(made["uri"].as_str().unwrap_or_default())?;
                }
                output.note("then: hy2ctl totp confirm CODE");
                Ok(())
            }
            Self::Confirm { code } => {
                client
                    .post("/auth/totp/confirm", &json!({"code": code}))
                    .await?;
                output.done(&json!({"totp": true}), "the second factor is in force")
            }
            Self::Remove { code } => {
                confirm(common.yes, "Remove the second factor")?;
                let body = json!({"code": code});
                client
                    .call(Method::DELETE, "/auth/totp", &[], Some(&body))
                    .await?;
                output.done(&json!({"totp": false}), "the second factor is gone")
            }
        }
    }
}

/// Reads a file of authorities.
pub(crate) fn read_ca(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    tls::config(Some(&text), None).with_context(|| file.display().to_string())?;
    Ok(text)
}
