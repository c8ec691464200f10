//! What every call of AdminService has: a caller, its rights, errors as gRPC has them, and request
//! ids that run once.

use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};

use super::Admin;
use crate::api::idempotency::hash as idempotency_hash;
use crate::api::problem::Problem;
use crate::auth::access::{Access, Caller, Operation};
use crate::service::ServiceError;
use crate::store::idempotency;

/// Where sealed answers belong.
const PLACE: &str = "idempotency_keys.response";

/// How long an answer is kept.
const KEEP: std::time::Duration = std::time::Duration::from_secs(86_400);

/// What kind of request it is: who asks, and what.
pub(super) struct Asked<T> {
    pub(super) caller: Caller,
    pub(super) message: T,
}

/// Takes a request apart; one that the layer before did not let in is refused.
pub(super) fn asked<T>(request: Request<T>) -> Result<Asked<T>, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    let caller = caller.ok_or_else(|| status(ServiceError::Unauthenticated))?;
    Ok(Asked {
        caller,
        message: request.into_inner(),
    })
}

impl<T> Asked<T> {
    /// Checks the caller's right to an operation.
    pub(super) fn access(&self, operation: Operation) -> Result<Access<'_>, Status> {
        self.caller
            .access(operation)
            .map_err(|denied| status(denied.into()))
    }
}

/// The same of lists, whose page is a message of its own in the contract.
pub(super) fn page_status(error: ServiceError) -> Status {
    status(error.renamed(&[("size", "page.size"), ("after", "page.after")]))
}

/// Errors as gRPC has them: the code of the problem document in `hy2-code`.
pub(super) fn status(error: ServiceError) -> Status {
    let code = match &error {
        ServiceError::Unauthenticated
        | ServiceError::WrongCredentials
        | ServiceError::CodeRequired => Code::Unauthenticated,
        ServiceError::Denied(_) | ServiceError::DeniedField { .. } => Code::PermissionDenied,
        ServiceError::NotFound(_) => Code::NotFound,
        ServiceError::Invalid(_) => Code::InvalidArgument,
        ServiceError::Stale(_) => Code::Aborted,
        ServiceError::Conflict {
            code: "duplicate", ..
        } => Code::AlreadyExists,
        ServiceError::Conflict { .. } => Code::FailedPrecondition,
        ServiceError::Limited(_) => Code::ResourceExhausted,
        ServiceError::Unavailable(_) => Code::Unavailable,
        ServiceError::Internal(_) => Code::Internal,
    };
    let problem = Problem::from(error);
    let mut text = problem.detail;
    for issue in &problem.errors {
        text.push_str(&format!("; {}: {}", issue.path, issue.message));
    }
    let mut status = Status::new(code, text);
    if let Ok(value) = MetadataValue::try_from(problem.code) {
        status.metadata_mut().insert("hy2-code", value);
    }
    status
}

impl Admin {
    /// Runs `work` once for a request id: the second request with it gets the first answer. A request is the same if
    /// operation, message and rights of the caller are: messages of different operations may have the same bytes.
    pub(super) async fn once<Q: Message, A: Message + Default>(
        &self,
        access: Access<'_>,
        message: &Q,
        request_id: &str,
        work: impl Future<Output = Result<A, ServiceError>>,
    ) -> Result<Response<A>, Status> {
        if request_id.is_empty() {
            return work.await.map(Response::new).map_err(status);
        }
        if request_id.len() > 100 || !request_id.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = "must be at most 100 printable ASCII characters";
            return Err(status(ServiceError::invalid("request_id", message)));
        }
        let service = &self.state.service;
        let (store, now) = (service.store(), service.now());
        let key = format!("grpc:{request_id}");
        let hash = idempotency_hash([
            access.operation().name().as_bytes(),
            access.caller().standing().as_bytes(),
            &message.encode_to_vec(),
        ]);
        let admin = access.caller().admin;
        let row = [&admin.0.to_be_bytes()[..], key.as_bytes()].concat();
        let fail = |error: crate::store::StoreError| status(error.into());
        let known = idempotency::claim(store, admin, &key, &hash, now, now.plus(KEEP)).await;
        if let Some(known) = known.map_err(fail)? {
            if known.request_hash != hash {
                let detail =
                    "this request_id came with another request, or from a caller with other rights";
                return Err(status(ServiceError::conflict(
                    "idempotency_mismatch",
                    detail,
                )));
            }
            let sealed = known.response_enc.ok_or_else(|| {
                let detail = "the first request with this id runs or was cut off";
                status(ServiceError::conflict("idempotency_unfinished", detail))
            })?;
            let opened = service.vault().open(PLACE, &row, &sealed);
            let opened = opened.map_err(|error| status(ServiceError::internal(error)))?;
            return A::decode(opened.as_slice())
                .map(Response::new)
                .map_err(|error| status(ServiceError::internal(error)));
        }
        match work.await {
            Ok(answer) => {
                let sealed = service.vault().seal(PLACE, &row, &answer.encode_to_vec());
                let kept = idempotency::remember(store, admin, &key, 200, &sealed).await;
                if let Err(error) = kept {
                    tracing::warn!(%error, "an answer was not kept; its key stays taken");
                }
                Ok(Response::new(answer))
            }
            Err(error) => {
                let _ = idempotency::release(store, admin, &key).await;
                Err(status(error))
            }
        }
    }
}
