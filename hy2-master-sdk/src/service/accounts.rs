//! Logging in, staying logged in, and one's own account.

use std::net::IpAddr;
use std::time::Duration;

use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use super::{Record, Service, ServiceError, record};
use crate::auth::access::{Access, Caller, Credential, Role};
use crate::auth::api_token::ApiToken;
use crate::auth::password;
use crate::auth::totp::SecondFactor;
use crate::domain::{AdminId, Timestamp};
use crate::ratelimit::{self, address_key};
use crate::store::admins::{self, AdminRow, SessionRow};
use crate::store::api_tokens::{self, ApiTokenRow};
use crate::store::{StoreError, Tx, audit, events};

/// A session that is not renewed for so long is over.
pub const SESSION_IDLE: Duration = Duration::from_secs(14 * 86_400);

/// A session is over after so long, however often it is renewed.
pub const SESSION_MAX: Duration = Duration::from_secs(90 * 86_400);

/// Longest name that is looked up, in bytes.
const MAX_NAME: usize = 64;

/// Name of the issuer in authenticator programs.
const TOTP_ISSUER: &str = "hy2";

/// Where sealed second factors belong.
const TOTP_PLACE: &str = "admins.totp";

/// From where and by what a request came.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Address of the client.
    pub address: Option<IpAddr>,
    /// Its `User-Agent`.
    pub user_agent: Option<String>,
}

/// What a login asks with.
#[derive(Debug)]
pub struct Login {
    /// Name.
    pub username: String,
    /// Password.
    pub password: SecretString,
    /// Code of the second factor.
    pub code: Option<String>,
}

/// What a login or a renewal gives.
pub struct Tokens {
    /// The session.
    pub session: Uuid,
    /// Access token.
    pub access: String,
    /// When the access token is over.
    pub access_expires_at: Timestamp,
    /// Refresh token, for one use.
    pub refresh: String,
    /// When the session is over if it is not renewed.
    pub refresh_expires_at: Timestamp,
    /// CSRF token, for sessions kept in cookies.
    pub csrf: String,
    /// Who it is.
    pub admin: AdminRow,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// A second factor to be confirmed.
#[derive(Debug)]
pub struct PendingFactor {
    /// Secret in base32, for typing.
    pub secret: String,
    /// `otpauth://` URI, for a QR code.
    pub uri: String,
}

impl Service {
    /// Opens a session.
    ///
    /// The same statements run and the same hash is computed whether or not the name exists.
    ///
    /// # Errors
    ///
    /// [`ServiceError::WrongCredentials`], [`ServiceError::CodeRequired`],
    /// [`ServiceError::Limited`], or the store fails.
    pub async fn login(&self, login: Login, origin: &Origin) -> Result<Tokens, ServiceError> {
        let from = origin.address.map_or_else(|| "-".to_owned(), address_key);
        let name = login.username.to_lowercase();
        let limiter = self.limiter();
        limiter.check(ratelimit::LOGIN_ADDRESS, &from).await?;
        let pair = format!("{name}\0{from}");
        limiter.check(ratelimit::LOGIN, &pair).await?;
        limiter.check(ratelimit::LOGIN_ACCOUNT, &name).await?;

        let found = match name.len() {
            1..=MAX_NAME => admins::find(self.store(), &name).await?,
            // Nobody has such a name; the work is the same as for one that nobody has.
            _ => admins::find(self.store(), "").await?,
        };
        let hash = found.as_ref().map(|admin| admin.password_hash.clone());
        let matches = self.passwords().verify(login.password, hash).await?;
        let admin = found.filter(|admin| matches && admin.status == "active");
        let Some(admin) = admin else {
            self.audit_login("login_failed", "-", origin, "wrong name or password")
                .await?;
            return Err(ServiceError::WrongCredentials);
        };

        let now = self.now();
        let step = match (&admin.totp_enc, &login.code) {
            (None, _) => None,
            (Some(_), None) => {
                self.audit_login("login_code_required", &admin.username, origin, "no code")
                    .await?;
                // The password was no guess, and the code is none yet: the next request brings it.
                limiter.give_back(ratelimit::LOGIN, &pair).await;
                limiter.give_back(ratelimit::LOGIN_ACCOUNT, &name).await;
                return Err(ServiceError::CodeRequired);
            }
            (Some(sealed), Some(code)) => {
                let factor = self.open_factor(&admin, sealed)?;
                let Some(step) = factor.check(code, now.0 / 1_000, admin.totp_last_step) else {
                    self.audit_login("login_failed", &admin.username, origin, "wrong code")
                        .await?;
                    return Err(ServiceError::WrongCredentials);
                };
                Some(step)
            }
        };
        let mut tx = self.store().begin().await?;
        if let Some(step) = step
            && !admins::spend_totp_step(&mut tx, admin.id, step).await?
        {
            // Somebody was faster with the same code.
            return Err(ServiceError::WrongCredentials);
        }
        let id = Uuid::new_v4();
        let refresh = self.session_keys().refresh_token(id);
        let session = SessionRow {
            id,
            admin_id: admin.id,
            refresh_hash: refresh.hash().to_vec(),
            address: origin.address.map(|address| address.to_string()),
            user_agent: origin.user_agent.as_deref().map(shorten),
            created_at: now,
            refreshed_at: now,
            expires_at: now.plus(SESSION_IDLE),
            revoked_at: None,
        };
        if !admins::insert_session(&mut tx, &session, admin.session_epoch).await? {
            // Meanwhile the password, or what the account may do, was changed, and that ended every session.
            drop(tx);
            self.audit_login("login_failed", &admin.username, origin, "account changed")
                .await?;
            return Err(ServiceError::WrongCredentials);
        }
        let entry = login_entry("login", &admin.username, origin, None, now);
        audit::append(&mut tx, &entry).await?;
        tx.commit().await?;
        // Who proved everything did not guess. The address's own try stays taken: one who has an account would
        // otherwise have no end of hashes computed.
        limiter.give_back(ratelimit::LOGIN, &pair).await;
        limiter.give_back(ratelimit::LOGIN_ACCOUNT, &name).await;
        self.tokens_of(admin, id, &refresh.reveal(), session.expires_at)
    }

    /// Renews a session: the refresh token is spent, and one that was spent before ends it.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Unauthenticated`], [`ServiceError::Limited`], or the store fails.
    pub async fn refresh(&self, token: &str, origin: &Origin) -> Result<Tokens, ServiceError> {
        let from = origin.address.map_or_else(|| "-".to_owned(), address_key);
        self.limiter().check(ratelimit::REFRESH, &from).await?;
        let token = self
            .session_keys()
            .read_refresh_token(token)
            .ok_or(ServiceError::Unauthenticated)?;
        let session = admins::session(self.store(), token.session())
            .await?
            .ok_or(ServiceError::Unauthenticated)?;
        let admin = admins::get(self.store(), session.admin_id).await?;
        let now = self.now();
        let next = self.session_keys().refresh_token(session.id);
        let expires_at = now
            .plus(SESSION_IDLE)
            .min(session.created_at.plus(SESSION_MAX));

        let mut tx = self.store().begin().await?;
        let (old, new) = (token.hash(), next.hash());
        if admins::rotate_session(&mut tx, session.id, &old, &new, now, expires_at).await? {
            if admin.status != "active" {
                return Err(ServiceError::Unauthenticated);
            }
            tx.commit().await?;
            return self.tokens_of(admin, session.id, &next.reveal(), expires_at);
        }
        let reused = admins::session_in(&mut tx, session.id)
            .await?
            .is_some_and(|row| row.revoked_at.is_none() && row.refresh_hash != old);
        if reused
            && admins::revoke_session(&mut tx, session.id, "refresh token reused", now).await?
        {
            let entry = login_entry(
                "refresh_reused",
                &admin.username,
                origin,
                Some("session ended"),
                now,
            );
            audit::append(&mut tx, &entry).await?;
            let payload = json!({"username": admin.username, "session": session.id});
            let key = admin.id.to_string();
            events::emit(&mut tx, "admin.refresh_reused", &key, &payload, None, now).await?;
            tx.commit().await?;
        }
        Err(ServiceError::Unauthenticated)
    }

    /// Recognises the holder of an access token.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Unauthenticated`], or the store fails.
    pub async fn authenticate_session(
        &self,
        token: &str,
        address: Option<IpAddr>,
    ) -> Result<Caller, ServiceError> {
        let now = self.now();
        let claims = self
            .tokens()
            .check(token, now.0 / 1_000)
            .map_err(|_| ServiceError::Unauthenticated)?;
        let admin: i64 = claims
            .sub
            .parse()
            .map_err(|_| ServiceError::Unauthenticated)?;
        let session = admins::session(self.store(), claims.sid)
            .await?
            .filter(|session| session.revoked_at.is_none() && session.expires_at > now)
            .filter(|session| session.admin_id == AdminId(admin))
            .ok_or(ServiceError::Unauthenticated)?;
        let admin = self.active_admin(session.admin_id).await?;
        if admin.session_epoch != claims.epoch {
            return Err(ServiceError::Unauthenticated);
        }
        caller(admin, Credential::Session { id: session.id }, address)
    }

    /// Recognises the holder of an API token.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Unauthenticated`], or the store fails.
    pub async fn authenticate_token(
        &self,
        token: &str,
        address: Option<IpAddr>,
    ) -> Result<Caller, ServiceError> {
        let token: ApiToken = token.parse().map_err(|_| ServiceError::Unauthenticated)?;
        let now = self.now();
        let row = api_tokens::find(self.store(), token.id())
            .await?
            .filter(|row| token.matches(&row.secret_hash))
            .ok_or(ServiceError::Unauthenticated)?;
        let (id, used_at) = (row.id, row.last_used_at);
        let caller = self.holder(row, address, now).await?;
        let hour = Duration::from_secs(3_600);
        if used_at.is_none_or(|used| now.since(used) >= hour) {
            // What the token asks for may need no write: a database that takes none is read all the same.
            if let Err(error) = api_tokens::touch(self.store(), id, now).await {
                tracing::debug!(%error, token = %id, "the use of an API token is not noted");
            }
        }
        Ok(caller)
    }

    /// Recognises the holder of a token that is not the master's own.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Unauthenticated`], also when there is no authenticator or the name is not that
    /// of an active administrator; [`ServiceError::Unavailable`] if it cannot be told now.
    pub async fn authenticate_external(
        &self,
        token: &str,
        address: Option<IpAddr>,
    ) -> Result<Caller, ServiceError> {
        let authenticator = self.authenticator().ok_or(ServiceError::Unauthenticated)?;
        let name = authenticator
            .authenticate(token, address)
            .await
            .map_err(|error| ServiceError::Unavailable(error.into()))?
            .ok_or(ServiceError::Unauthenticated)?;
        let admin = admins::find(self.store(), &name)
            .await?
            .filter(|admin| admin.status == "active")
            .ok_or(ServiceError::Unauthenticated)?;
        let caller = caller(admin, Credential::External, address)?;
        Ok(Caller {
            must_change_password: false,
            ..caller
        })
    }

    /// Returns the caller as the store has them now, for streams that outlive their request.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Unauthenticated`] if the credential or its administrator does not hold any more, or the store
    /// fails.
    pub async fn present(&self, known: &Caller) -> Result<Caller, ServiceError> {
        let now = self.now();
        match &known.credential {
            Credential::Session { id } => {
                let session = admins::session(self.store(), *id)
                    .await?
                    .filter(|session| session.revoked_at.is_none() && session.expires_at > now)
                    .ok_or(ServiceError::Unauthenticated)?;
                let admin = self.active_admin(session.admin_id).await?;
                caller(admin, known.credential.clone(), known.address)
            }
            Credential::Token { id, .. } => {
                let row = api_tokens::find(self.store(), *id)
                    .await?
                    .ok_or(ServiceError::Unauthenticated)?;
                self.holder(row, known.address, now).await
            }
            Credential::External => {
                let admin = self.active_admin(known.admin).await?;
                let caller = caller(admin, Credential::External, known.address)?;
                Ok(Caller {
                    must_change_password: false,
                    ..caller
                })
            }
            Credential::Host => Ok(known.clone()),
        }
    }

    /// Returns who asks with an API token, if it is in force and may be used from there.
    async fn holder(
        &self,
        row: ApiTokenRow,
        address: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<Caller, ServiceError> {
        let ended = row.revoked_at.is_some() || row.expires_at.is_some_and(|end| end <= now);
        if ended || !comes_from(&row.cidrs, address) {
            return Err(ServiceError::Unauthenticated);
        }
        let admin = self.active_admin(row.admin_id).await?;
        let credential = Credential::Token {
            id: row.id,
            scopes: row.scopes.0,
        };
        caller(admin, credential, address)
    }

    /// Ends the caller's session.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn logout(&self, access: Access<'_>) -> Result<(), ServiceError> {
        let Credential::Session { id } = access.caller().credential else {
            return Err(ServiceError::Unauthenticated);
        };
        self.end_session(access, id, "logged out").await
    }

    /// Returns the caller's account.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn me(&self, access: Access<'_>) -> Result<AdminRow, ServiceError> {
        Ok(admins::get(self.store(), access.caller().admin).await?)
    }

    /// Lists the caller's open sessions.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn my_sessions(&self, access: Access<'_>) -> Result<Vec<SessionRow>, ServiceError> {
        Ok(admins::sessions(self.store(), access.caller().admin, self.now()).await?)
    }

    /// Ends one of the caller's sessions.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`] if it is not the caller's, or the store fails.
    pub async fn revoke_my_session(
        &self,
        access: Access<'_>,
        id: Uuid,
    ) -> Result<(), ServiceError> {
        admins::session(self.store(), id)
            .await?
            .filter(|session| session.admin_id == access.caller().admin)
            .ok_or(ServiceError::NotFound("session"))?;
        self.end_session(access, id, "revoked").await
    }

    /// Changes the caller's password and ends all their sessions.
    ///
    /// # Errors
    ///
    /// [`ServiceError::WrongCredentials`] if the old one is not right, [`ServiceError::Invalid`]
    /// if the new one breaks the rules, [`ServiceError::Unauthenticated`] if the account was changed meanwhile.
    pub async fn change_password(
        &self,
        access: Access<'_>,
        old: SecretString,
        new: SecretString,
    ) -> Result<(), ServiceError> {
        let id = access.caller().admin;
        self.limiter()
            .check(ratelimit::LOGIN, &format!("{id}\0password"))
            .await?;
        password::check_rules(&new)?;
        let admin = admins::get(self.store(), id).await?;
        let hash = Some(admin.password_hash);
        if !self.passwords().verify(old, hash).await? {
            return Err(ServiceError::WrongCredentials);
        }
        let hash = self.passwords().hash(new).await?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        // While the passwords were hashed, somebody else may have set one, and ended this session by that: what was
        // right then has no say any more.
        if own_account(&mut tx, access, now).await?.session_epoch != admin.session_epoch {
            return Err(ServiceError::Unauthenticated);
        }
        admins::set_password(&mut tx, id, &hash, false, now).await?;
        record(
            &mut tx,
            access,
            account_record(id, "admin.password_changed"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Makes a second factor, in force once [`Service::confirm_totp`] has seen a code.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Conflict`] if one is in force: it has to be removed with a code first.
    pub async fn begin_totp(&self, access: Access<'_>) -> Result<PendingFactor, ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let admin = own_account(&mut tx, access, now).await?;
        if admin.totp_enc.is_some() {
            let detail = "a second factor is in force; remove it with a code first";
            return Err(ServiceError::conflict("totp_enabled", detail));
        }
        let factor =
            SecondFactor::generate(TOTP_ISSUER, &admin.username).map_err(ServiceError::internal)?;
        let row = admin.id.0.to_be_bytes();
        let sealed = self.vault().seal(TOTP_PLACE, &row, factor.secret());
        admins::set_pending_totp(&mut tx, admin.id, &sealed, now).await?;
        tx.commit().await?;
        Ok(PendingFactor {
            secret: factor.secret_base32(),
            uri: factor.uri().map_err(ServiceError::internal)?,
        })
    }

    /// Puts the pending second factor in force.
    ///
    /// # Errors
    ///
    /// [`ServiceError::WrongCredentials`] if the code is not right.
    pub async fn confirm_totp(&self, access: Access<'_>, code: &str) -> Result<(), ServiceError> {
        let id = access.caller().admin;
        self.limiter()
            .check(ratelimit::LOGIN, &format!("{id}\0totp"))
            .await?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let admin = own_account(&mut tx, access, now).await?;
        let Some(sealed) = admin
            .totp_pending_enc
            .as_deref()
            .filter(|_| admin.totp_enc.is_none())
        else {
            return Err(ServiceError::conflict("no_pending_totp", "begin first"));
        };
        let factor = self.open_factor(&admin, sealed)?;
        let step = factor
            .check(code, now.0 / 1_000, 0)
            .ok_or(ServiceError::WrongCredentials)?;
        admins::set_totp(&mut tx, id, Some(sealed), step, now).await?;
        record(
            &mut tx,
            access,
            account_record(id, "admin.totp_enabled"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Removes the second factor.
    ///
    /// # Errors
    ///
    /// [`ServiceError::WrongCredentials`] if the code is not right.
    pub async fn disable_totp(&self, access: Access<'_>, code: &str) -> Result<(), ServiceError> {
        let id = access.caller().admin;
        self.limiter()
            .check(ratelimit::LOGIN, &format!("{id}\0totp"))
            .await?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let admin = own_account(&mut tx, access, now).await?;
        let Some(sealed) = admin.totp_enc.as_deref() else {
            return Err(ServiceError::conflict(
                "no_totp",
                "there is no second factor",
            ));
        };
        let factor = self.open_factor(&admin, sealed)?;
        let step = factor
            .check(code, now.0 / 1_000, admin.totp_last_step)
            .ok_or(ServiceError::WrongCredentials)?;
        admins::set_totp(&mut tx, id, None, step, now).await?;
        record(
            &mut tx,
            access,
            account_record(id, "admin.totp_disabled"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn end_session(
        &self,
        access: Access<'_>,
        id: Uuid,
        reason: &str,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        admins::revoke_session(&mut tx, id, reason, now).await?;
        let admin = access.caller().admin;
        record(
            &mut tx,
            access,
            account_record(admin, "admin.session_ended"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn active_admin(&self, id: AdminId) -> Result<AdminRow, ServiceError> {
        match admins::get(self.store(), id).await {
            Ok(admin) if admin.status == "active" => Ok(admin),
            Ok(_) | Err(StoreError::NotFound(_)) => Err(ServiceError::Unauthenticated),
            Err(error) => Err(error.into()),
        }
    }

    fn open_factor(&self, admin: &AdminRow, sealed: &[u8]) -> Result<SecondFactor, ServiceError> {
        let row = admin.id.0.to_be_bytes();
        let secret = self
            .vault()
            .open(TOTP_PLACE, &row, sealed)
            .map_err(ServiceError::internal)?;
        SecondFactor::new(&secret, TOTP_ISSUER, &admin.username).map_err(ServiceError::internal)
    }

    fn tokens_of(
        &self,
        admin: AdminRow,
        session: Uuid,
        refresh: &str,
        refresh_expires_at: Timestamp,
    ) -> Result<Tokens, ServiceError> {
        let seconds = self.now().0 / 1_000;
        let access = self
            .tokens()
            .issue(admin.id, session, admin.session_epoch, seconds)
            .map_err(ServiceError::internal)?;
        Ok(Tokens {
            session,
            access,
            access_expires_at: Timestamp((seconds + crate::auth::jwt::LIFETIME_S) * 1_000),
            refresh: refresh.to_owned(),
            refresh_expires_at,
            csrf: self.session_keys().csrf_token(session),
            admin,
        })
    }

    async fn audit_login(
        &self,
        action: &str,
        actor: &str,
        origin: &Origin,
        why: &str,
    ) -> Result<(), ServiceError> {
        let mut tx = self.store().begin().await?;
        let entry = login_entry(action, actor, origin, Some(why), self.now());
        audit::append(&mut tx, &entry).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Returns the caller's own account, and keeps others from changing it, and from ending the caller's session by that,
/// until the transaction ends.
///
/// # Errors
///
/// As [`check_standing`].
pub(super) async fn own_account(
    tx: &mut Tx,
    access: Access<'_>,
    now: Timestamp,
) -> Result<AdminRow, ServiceError> {
    let admin = admins::get_for_update(tx, access.caller().admin).await?;
    check_standing(tx, access, now).await?;
    Ok(admin)
}

/// Checks as the transaction sees it that the caller is who they were when the request came, for what takes its time
/// in between: whatever changes what an account may do ends its sessions.
///
/// # Errors
///
/// [`ServiceError::Unauthenticated`] if they are not, or the store fails.
pub(super) async fn check_standing(
    tx: &mut Tx,
    access: Access<'_>,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let caller = access.caller();
    let stands = match &caller.credential {
        Credential::Host => true,
        Credential::Session { id } => admins::session_in(tx, *id)
            .await?
            .is_some_and(|session| session.revoked_at.is_none() && session.expires_at > now),
        Credential::Token { .. } | Credential::External => {
            match admins::get_in(tx, caller.admin).await {
                Ok(admin) => admin.status == "active" && admin.role == caller.role.as_str(),
                Err(StoreError::NotFound(_)) => false,
                Err(error) => return Err(error.into()),
            }
        }
    };
    match stands {
        true => Ok(()),
        false => Err(ServiceError::Unauthenticated),
    }
}

fn caller(
    admin: AdminRow,
    credential: Credential,
    address: Option<IpAddr>,
) -> Result<Caller, ServiceError> {
    let role = Role::from_name(&admin.role).ok_or_else(|| {
        ServiceError::internal(format!(
            "administrator {} has unknown role {}",
            admin.id, admin.role
        ))
    })?;
    Ok(Caller {
        admin: admin.id,
        username: admin.username,
        role,
        credential,
        address,
        must_change_password: admin.must_change_password,
    })
}

fn comes_from(cidrs: &[ipnet::IpNet], address: Option<IpAddr>) -> bool {
    cidrs.is_empty()
        || address.is_some_and(|address| {
            let address = address.to_canonical();
            cidrs.iter().any(|cidr| cidr.contains(&address))
        })
}

fn account_record(id: AdminId, topic: &str) -> Record<'_> {
    Record {
        kind: "admin",
        id: id.to_string(),
        before: None,
        after: None,
        owner: None,
        topic,
    }
}

fn login_entry(
    action: &str,
    actor: &str,
    origin: &Origin,
    why: Option<&str>,
    now: Timestamp,
) -> audit::NewEntry {
    audit::NewEntry {
        at: now,
        actor_kind: "admin",
        actor: actor.to_owned(),
        address: origin.address.map(|address| address.to_string()),
        action: action.to_owned(),
        object_kind: "admin",
        object_id: actor.to_owned(),
        before: None,
        after: why.map(|why| json!({ "reason": why })),
        request_id: Some(Uuid::new_v4()),
    }
}

fn shorten(user_agent: &str) -> String {
    user_agent
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}
