//! What every call of AdminService has: a caller, its rights, errors as gRPC has them, and request
//! ids that run once.

use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};

use super::Admin;
use crate::api::PATIENCE;
use crate::api::keyed::{Claimed, End};
use crate::api::problem::Problem;
use crate::auth::access::{Access, Caller, Operation};
use crate::service::ServiceError;

/// Where sealed answers belong.
const PLACE: &str = "idempotency_keys.response";

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
    told(code, Problem::from(error))
}

/// A problem document as gRPC has it, with a code: `hy2-code`, and `retry-after` in seconds.
pub(super) fn told(code: Code, problem: Problem) -> Status {
    let mut text = problem.detail;
    for issue in &problem.errors {
        text.push_str(&format!("; {}: {}", issue.path, issue.message));
    }
    let mut status = Status::new(code, text);
    if let Ok(value) = MetadataValue::try_from(problem.code) {
        status.metadata_mut().insert("hy2-code", value);
    }
    if let Some(retry) = problem.retry_after {
        let seconds = retry.as_secs().max(1);
        status.metadata_mut().insert("retry-after", seconds.into());
    }
    status
}

impl Admin {
    /// Runs `work` once for a request id, in [`to_the_end`](super::to_the_end): the second request with it gets the first answer. A request is the same if
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
        let key = format!("grpc:{request_id}");
        let hash = service.session_keys().request_hash(&[
            access.operation().name().as_bytes(),
            access.caller().standing().as_bytes(),
            &message.encode_to_vec(),
        ]);
        let admin = access.caller().admin;
        let row = [&admin.0.to_be_bytes()[..], key.as_bytes()].concat();
        let claimed = self.state.keyed.claim(service, admin, &key, &hash).await;
        let held = match claimed.map_err(|error| status(error.into()))? {
            Claimed::Ours(held) => held,
            Claimed::Known { first, .. } if first.request_hash != hash => {
                let detail =
                    "this request_id came with another request, or from a caller with other rights";
                return Err(status(ServiceError::conflict(
                    "idempotency_mismatch",
                    detail,
                )));
            }
            Claimed::Known { first, runs } => {
                let acted = first.has_acted();
                let Some(sealed) = first.response_enc else {
                    return Err(match runs {
                        true => told(Code::Unavailable, Problem::still_runs()),
                        false => told(Code::FailedPrecondition, Problem::cut_off(acted)),
                    });
                };
                let opened = service.vault().open(PLACE, &row, &sealed);
                let opened = opened.map_err(|error| status(ServiceError::internal(error)))?;
                return A::decode(opened.as_slice())
                    .map(Response::new)
                    .map_err(|error| status(ServiceError::internal(error)));
            }
        };
        let done = tokio::time::timeout(PATIENCE, held.work(work)).await;
        let (end, done) = match done {
            Ok(Ok(answer)) => {
                let sealed = service.vault().seal(PLACE, &row, &answer.encode_to_vec());
                let (status, sealed) = (200, sealed.into());
                (End::Answered { status, sealed }, Ok(Response::new(answer)))
            }
            // What failed may have changed something before.
            Ok(Err(error @ (ServiceError::Unavailable(_) | ServiceError::Internal(_)))) => {
                (End::Failed, Err(status(error)))
            }
            Ok(Err(error)) => (End::Refused, Err(status(error))),
            Err(_) => {
                let late = Status::deadline_exceeded("the request took too long");
                (End::Failed, Err(late))
            }
        };
        held.end(service.store(), end).await;
        done
    }
}
