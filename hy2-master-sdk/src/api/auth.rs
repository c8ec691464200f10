//! Logging in and one's own account.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::address::ClientAddress;
use super::authn::{ACCESS_COOKIE, CSRF_HEADER, REFRESH_COOKIE, check_origin, cookie};
use super::extract::{Auth, Body, Path};
use super::problem::Problem;
use super::{ApiState, Items, errors};
use crate::auth::access::Operation;
use crate::domain::Timestamp;
use crate::service::ServiceError;
use crate::service::accounts::{Login, Origin, SESSION_IDLE, Tokens};
use crate::service::admins::AdminView;
use crate::service::api_tokens::NewApiToken;
use crate::service::moment::{Moment, SecretText};
use crate::store::admins::SessionRow;
use crate::store::api_tokens::ApiTokenRow;
use secrecy::ExposeSecret;

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .routes(routes!(get_me))
        .routes(routes!(change_password))
        .routes(routes!(begin_totp, disable_totp))
        .routes(routes!(confirm_totp))
        .routes(routes!(list_my_sessions))
        .routes(routes!(revoke_my_session))
        .routes(routes!(list_api_tokens, create_api_token))
        .routes(routes!(revoke_api_token))
}

/// A login.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LoginRequest {
    /// Name.
    username: String,
    /// Password.
    password: SecretText,
    /// Code of the second factor.
    #[serde(default)]
    code: Option<String>,
    /// `true`: the tokens are set as cookies and are not in the answer. For the panel.
    #[serde(default)]
    cookies: bool,
}

/// A renewal.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RefreshRequest {
    /// The refresh token; absent when it is a cookie.
    #[serde(default)]
    refresh_token: Option<SecretText>,
}

/// A session.
#[derive(Serialize, ToSchema)]
struct SessionTokens {
    /// For `Authorization: Bearer`; absent when it is a cookie.
    access_token: Option<String>,
    /// When it is over.
    access_expires_at: Moment,
    /// For one renewal; absent when it is a cookie.
    refresh_token: Option<String>,
    /// When the session is over if it is not renewed.
    refresh_expires_at: Moment,
    /// For `X-CSRF-Token`, when the tokens are cookies.
    csrf_token: String,
    /// Who it is.
    admin: AdminView,
}

/// A change of one's own password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PasswordChange {
    /// The one in force.
    old: SecretText,
    /// At least 12 characters.
    new: SecretText,
}

/// A code of the second factor.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Code {
    /// Six digits.
    code: String,
}

/// A second factor to be confirmed.
#[derive(Serialize, ToSchema)]
struct TotpSecret {
    /// In base32, for typing.
    secret: String,
    /// For a QR code.
    uri: String,
}

/// An open session of one's own.
#[derive(Serialize, ToSchema)]
struct MySession {
    /// Id.
    id: Uuid,
    /// Where it was opened.
    address: Option<String>,
    /// By what program.
    user_agent: Option<String>,
    /// Opened at.
    created_at: Moment,
    /// Last renewed at.
    refreshed_at: Moment,
    /// Over at.
    expires_at: Moment,
}

impl From<SessionRow> for MySession {
    fn from(row: SessionRow) -> Self {
        Self {
            id: row.id,
            address: row.address,
            user_agent: row.user_agent,
            created_at: Moment(row.created_at),
            refreshed_at: Moment(row.refreshed_at),
            expires_at: Moment(row.expires_at),
        }
    }
}

/// An API token.
#[derive(Serialize, ToSchema)]
struct ApiTokenView {
    /// Id.
    id: Uuid,
    /// Whose rights it has at most.
    admin_id: i64,
    /// What it is for.
    name: String,
    /// Its beginning.
    prefix: String,
    /// What it may be used for.
    scopes: Vec<String>,
    /// From where; empty: anywhere.
    cidrs: Vec<String>,
    /// Over at.
    expires_at: Option<Moment>,
    /// Last used at, to the hour.
    last_used_at: Option<Moment>,
    /// Made at.
    created_at: Moment,
}

impl From<ApiTokenRow> for ApiTokenView {
    fn from(row: ApiTokenRow) -> Self {
        Self {
            id: row.id,
            admin_id: row.admin_id.0,
            name: row.name,
            prefix: row.prefix,
            scopes: row.scopes.0,
            cidrs: row.cidrs.0.iter().map(ToString::to_string).collect(),
            expires_at: row.expires_at.map(Moment),
            last_used_at: row.last_used_at.map(Moment),
            created_at: Moment(row.created_at),
        }
    }
}

/// An API token to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateApiToken {
    /// What it is for.
    name: String,
    /// What it may be used for: `users:read`, …
    scopes: Vec<String>,
    /// From where it may be used; empty: anywhere.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    cidrs: Vec<ipnet::IpNet>,
    /// When it is over.
    #[serde(default)]
    expires_at: Option<Moment>,
}

/// An API token, shown once.
#[derive(Serialize, ToSchema)]
struct CreatedApiToken {
    /// For `Authorization: Bearer`.
    token: String,
    /// What is known of it.
    #[serde(flatten)]
    view: ApiTokenView,
}

/// Opens a session.
#[utoipa::path(post, path = "/auth/login", tag = "auth", security(()),
    request_body = LoginRequest,
    responses((status = 200, body = SessionTokens), errors::Public))]
async fn login(
    State(state): State<ApiState>,
    address: Option<axum::Extension<ClientAddress>>,
    headers: HeaderMap,
    Body(request): Body<LoginRequest>,
) -> Result<Response, Problem> {
    if request.cookies {
        // A foreign page must not log somebody in as somebody else.
        check_origin(&headers)?;
    }
    let login = Login {
        username: request.username,
        password: request.password.0,
        code: request.code,
    };
    let origin = origin(address.map(|address| address.0), &headers);
    let tokens = state.service.login(login, &origin).await?;
    Ok(answer(tokens, request.cookies))
}

/// Renews a session. The refresh token is spent; used again, it ends the session.
#[utoipa::path(post, path = "/auth/refresh", tag = "auth", security(()),
    request_body = RefreshRequest,
    responses((status = 200, body = SessionTokens), errors::Public))]
async fn refresh(
    State(state): State<ApiState>,
    address: Option<axum::Extension<ClientAddress>>,
    headers: HeaderMap,
    Body(request): Body<RefreshRequest>,
) -> Result<Response, Problem> {
    let origin = origin(address.map(|address| address.0), &headers);
    if let Some(token) = request.refresh_token {
        let tokens = state
            .service
            .refresh(token.0.expose_secret(), &origin)
            .await?;
        return Ok(answer(tokens, false));
    }
    let token = cookie(&headers, REFRESH_COOKIE).ok_or(ServiceError::Unauthenticated)?;
    check_origin(&headers)?;
    let keys = state.service.session_keys();
    let session = keys
        .read_refresh_token(token)
        .ok_or(ServiceError::Unauthenticated)?
        .session();
    let given = headers
        .get(CSRF_HEADER)
        .and_then(|value| value.to_str().ok());
    if !keys.is_csrf_token(session, given.unwrap_or_default()) {
        return Err(Problem::csrf());
    }
    let tokens = state.service.refresh(token, &origin).await?;
    Ok(answer(tokens, true))
}

/// Ends the session.
#[utoipa::path(post, path = "/auth/logout", tag = "auth",
    responses((status = 204), errors::Common))]
async fn logout(State(state): State<ApiState>, auth: Auth) -> Result<Response, Problem> {
    state
        .service
        .logout(auth.access(Operation::Logout)?)
        .await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    for name in [ACCESS_COOKIE, REFRESH_COOKIE] {
        set_cookie(&mut response, name, "", 0);
    }
    Ok(response)
}

/// Returns one's own account.
#[utoipa::path(get, path = "/auth/me", tag = "auth",
    responses((status = 200, body = AdminView), errors::Common))]
async fn get_me(State(state): State<ApiState>, auth: Auth) -> Result<Json<AdminView>, Problem> {
    let row = state.service.me(auth.access(Operation::GetMe)?).await?;
    Ok(Json(row.into()))
}

/// Changes one's own password and ends all sessions.
#[utoipa::path(post, path = "/auth/password", tag = "auth", request_body = PasswordChange,
    responses((status = 204), errors::Common))]
async fn change_password(
    State(state): State<ApiState>,
    auth: Auth,
    Body(change): Body<PasswordChange>,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::ChangePassword)?;
    state
        .service
        .change_password(access, change.old.0, change.new.0)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a second factor, in force once a code has confirmed it.
#[utoipa::path(post, path = "/auth/totp", tag = "auth",
    responses((status = 200, body = TotpSecret), errors::Common))]
async fn begin_totp(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<TotpSecret>, Problem> {
    let factor = state
        .service
        .begin_totp(auth.access(Operation::BeginTotp)?)
        .await?;
    Ok(Json(TotpSecret {
        secret: factor.secret,
        uri: factor.uri,
    }))
}

/// Puts the second factor in force.
#[utoipa::path(post, path = "/auth/totp/confirm", tag = "auth", request_body = Code,
    responses((status = 204), errors::Common))]
async fn confirm_totp(
    State(state): State<ApiState>,
    auth: Auth,
    Body(code): Body<Code>,
) -> Result<StatusCode, Problem> {
    state
        .service
        .confirm_totp(auth.access(Operation::ConfirmTotp)?, &code.code)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes the second factor.
#[utoipa::path(delete, path = "/auth/totp", tag = "auth", request_body = Code,
    responses((status = 204), errors::Common))]
async fn disable_totp(
    State(state): State<ApiState>,
    auth: Auth,
    Body(code): Body<Code>,
) -> Result<StatusCode, Problem> {
    state
        .service
        .disable_totp(auth.access(Operation::DisableTotp)?, &code.code)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists one's own open sessions.
#[utoipa::path(get, path = "/auth/sessions", tag = "auth",
    responses((status = 200, body = Items<MySession>), errors::Common))]
async fn list_my_sessions(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<Items<MySession>>, Problem> {
    let rows = state
        .service
        .my_sessions(auth.access(Operation::ListMySessions)?)
        .await?;
    Ok(Items::of(rows))
}

/// Ends one of one's own sessions.
#[utoipa::path(delete, path = "/auth/sessions/{id}", tag = "auth", params(("id" = Uuid, Path)),
    responses((status = 204), errors::Common))]
async fn revoke_my_session(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    state
        .service
        .revoke_my_session(auth.access(Operation::RevokeMySession)?, id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists API tokens in force: one's own, for owners everybody's.
#[utoipa::path(get, path = "/api-tokens", tag = "api-tokens",
    responses((status = 200, body = Items<ApiTokenView>), errors::Common))]
async fn list_api_tokens(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<Items<ApiTokenView>>, Problem> {
    let rows = state
        .service
        .api_tokens(auth.access(Operation::ListApiTokens)?)
        .await?;
    Ok(Items::of(rows))
}

/// Makes an API token. It is shown this once.
#[utoipa::path(post, path = "/api-tokens", tag = "api-tokens", request_body = CreateApiToken,
    responses((status = 201, body = CreatedApiToken), errors::Common))]
async fn create_api_token(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<CreateApiToken>,
) -> Result<(StatusCode, Json<CreatedApiToken>), Problem> {
    let new = NewApiToken {
        name: new.name,
        scopes: new.scopes,
        cidrs: new.cidrs,
        expires_at: new.expires_at.map(|at| at.0),
    };
    let made = state
        .service
        .create_api_token(auth.access(Operation::CreateApiToken)?, new)
        .await?;
    let token = made.token.expose_secret().to_owned();
    Ok((
        StatusCode::CREATED,
        Json(CreatedApiToken {
            token,
            view: made.row.into(),
        }),
    ))
}

/// Ends an API token.
#[utoipa::path(delete, path = "/api-tokens/{id}", tag = "api-tokens", params(("id" = Uuid, Path)),
    responses((status = 204), errors::Common))]
async fn revoke_api_token(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    state
        .service
        .revoke_api_token(auth.access(Operation::RevokeApiToken)?, id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn origin(address: Option<ClientAddress>, headers: &HeaderMap) -> Origin {
    let user_agent = headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok());
    Origin {
        address: address.map(|address| address.0),
        user_agent: user_agent.map(str::to_owned),
    }
}

fn answer(tokens: Tokens, cookies: bool) -> Response {
    let body = SessionTokens {
        access_token: (!cookies).then(|| tokens.access.clone()),
        access_expires_at: Moment(tokens.access_expires_at),
        refresh_token: (!cookies).then(|| tokens.refresh.clone()),
        refresh_expires_at: Moment(tokens.refresh_expires_at),
        csrf_token: tokens.csrf,
        admin: tokens.admin.into(),
    };
    let mut response = Json(body).into_response();
    if cookies {
        let until = |end: Timestamp| end.0 / 1_000;
        let now = until(tokens.access_expires_at) - crate::auth::jwt::LIFETIME_S;
        set_cookie(
            &mut response,
            ACCESS_COOKIE,
            &tokens.access,
            crate::auth::jwt::LIFETIME_S,
        );
        let left = until(tokens.refresh_expires_at) - now;
        let left = left.min(i64::try_from(SESSION_IDLE.as_secs()).unwrap_or(i64::MAX));
        set_cookie(&mut response, REFRESH_COOKIE, &tokens.refresh, left);
    }
    response
}

/// `__Host-` makes the browser insist on `Secure`, `Path=/` and no `Domain`.
fn set_cookie(response: &mut Response, name: &str, value: &str, max_age_s: i64) {
    let cookie =
        format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={max_age_s}");
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}
