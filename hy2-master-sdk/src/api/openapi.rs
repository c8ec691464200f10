//! The OpenAPI document, made from the routes themselves.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::ApiState;

/// Operations that need no caller, by `operationId`.
pub const PUBLIC_OPERATIONS: &[&str] = &["login", "refresh"];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "hy2 orchestrator",
        description = "Nodes, users, plans, traffic and configuration of a fleet. Errors are \
            problem documents (RFC 9457) with a stable `code`. Lists give pages by key: `next` of \
            one page is `after` of the following. Requests that change something take \
            `Idempotency-Key` (kept 24 h) and, where a resource has an `ETag`, `If-Match`. A request \
            with a key goes on when its client hangs up; repeated, it has the answer of the first, and \
            until there is one 409 `idempotency_running` with `Retry-After`. 409 \
            `idempotency_unfinished`: there will be none, because the first was cut off; look whether \
            it has happened, then use a new key. A request that failed and changed nothing gives its \
            key back. Keys are not in backups: after a restore a request with a key from before runs \
            again, so look first whether it has happened.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "/")),
    security(("bearer" = []), ("cookie" = [])),
    modifiers(&Schemes),
)]
struct Document;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_with(Default::default);
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "An access token of a session, or an API token (`hy2_…`).",
            ))
            .build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let cookie = ApiKey::Cookie(ApiKeyValue::with_description(
            super::authn::ACCESS_COOKIE,
            "The panel's session. Requests that change something carry `X-CSRF-Token` too.",
        ));
        components.add_security_scheme("cookie", SecurityScheme::ApiKey(cookie));
    }
}

/// Returns the documented routes.
pub(crate) fn routes() -> OpenApiRouter<ApiState> {
    let api = OpenApiRouter::new()
        .merge(super::auth::router())
        .merge(super::nodes::router())
        .merge(super::alerts::router())
        .merge(super::users::router())
        .merge(super::plans::router())
        .merge(super::pools::router())
        .merge(super::regions::router())
        .merge(super::assignments::router())
        .merge(super::traffic::router())
        .merge(super::configs::router())
        .merge(super::admins::router())
        .merge(super::webhooks::router())
        .merge(super::system::router());
    OpenApiRouter::with_openapi(Document::openapi()).nest("/api/v1", api)
}

/// Returns the document as JSON, as it is committed.
#[must_use]
pub fn document() -> String {
    render(routes().get_openapi())
}

pub(crate) fn render(document: &utoipa::openapi::OpenApi) -> String {
    let mut text = document
        .to_pretty_json()
        .expect("the document holds nothing but JSON");
    text.push('\n');
    text
}
