//! Messages between master, nodes and operators: whatever decodes is the same again after encoding.
//!
//! Planted bug: the hash of a user set left out a byte of each digest.

use hy2_proto::control::{hash, rpc};
use prost::Message;

/// Takes a byte that chooses the message, and its encoding.
pub fn target(data: &[u8]) {
    let [choice, encoded @ ..] = data else { return };
    if let Some((_, check)) = MESSAGES.get(usize::from(*choice)) {
        check(encoded);
    }
}

/// Decodes, encodes and decodes again.
fn check<M: Message + Default + Clone + PartialEq>(encoded: &[u8]) {
    let Ok(message) = M::decode(encoded) else {
        return;
    };
    let again = message.encode_to_vec();
    assert_eq!(again.len(), message.encoded_len());
    let decoded = M::decode(&again[..]).expect("what was encoded");
    // Nothing equals itself that holds a fraction which is not a number.
    let comparable = message == message.clone();
    assert!(decoded == message || !comparable);
    assert_eq!(decoded.encoded_len(), again.len());
    let digests = [hash::blob(encoded), hash::blob(&again)];
    assert_eq!(hash::user_set(&digests), hash::blob(&digests.concat()));

    // Fields that stand twice: the later one wins or both are kept, but it is still a message.
    let twice = [encoded, encoded].concat();
    M::decode(&twice[..]).expect("the same fields again");
}

macro_rules! messages {
    ($($name:ident),* $(,)?) => {
        /// All messages in the order of their place in the contracts; a test compares the list.
        pub const MESSAGES: &[(&str, fn(&[u8]))] =
            &[$((stringify!($name), check::<rpc::$name>)),*];
    };
}

messages! {
    NodeConfig,
    VerifierKeys,
    Tls,
    TlsFiles,
    TlsIssued,
    Obfuscation,
    Salamander,
    Gecko,
    PreviousObfuscation,
    ServerBandwidth,
    Congestion,
    Quic,
    UdpRelay,
    Masquerade,
    MasqueradeNotFound,
    MasqueradeString,
    MasqueradeFile,
    MasqueradeProxy,
    UserEntry,
    Manifest,
    ResourceRef,
    SignedManifest,
    SigningKey,
    NodeInfo,
    NodeMetrics,
    LiveSession,
    TrafficBatch,
    UserTraffic,
    LeaseUse,
    TrafficAck,
    Cursor,
    QuotaLease,
    DeviceLease,
    FieldError,
    EnrollRequest,
    EnrollResponse,
    IssuedCertificate,
    RenewCertificateRequest,
    RenewCertificateResponse,
    SessionRequest,
    Hello,
    Heartbeat,
    ResourceAck,
    ResourceNack,
    StatusReport,
    SessionsReport,
    Alert,
    SessionResponse,
    Welcome,
    ResourceUpdate,
    OpenReverse,
    CertificateUpdate,
    Goodbye,
    LeaseRecall,
    ReportTrafficRequest,
    ReportTrafficResponse,
    ReportMetricsRequest,
    ReportMetricsResponse,
    LeaseRequest,
    LeaseWant,
    DeviceWant,
    LeaseResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    GetInfoRequest,
    GetInfoResponse,
    GetStatsRequest,
    GetStatsResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    KickSessionsRequest,
    KickSessionsResponse,
    SetUserRateRequest,
    SetUserRateResponse,
    SetStateRequest,
    SetStateResponse,
    TailLogsRequest,
    TailLogsResponse,
    RunDiagnosticsRequest,
    RunDiagnosticsResponse,
    CheckConfigRequest,
    CheckConfigResponse,
    RestartEngineRequest,
    RestartEngineResponse,
    PageRequest,
    PageInfo,
    Node,
    ListNodesRequest,
    ListNodesResponse,
    GetNodeRequest,
    GetNodeResponse,
    NodeTags,
    UpdateNodeRequest,
    UpdateNodeResponse,
    DeleteNodeRequest,
    DeleteNodeResponse,
    SetNodeStateRequest,
    SetNodeStateResponse,
    RevokeNodeCertificatesRequest,
    RevokeNodeCertificatesResponse,
    ForfeitNodeRequest,
    ForfeitNodeResponse,
    CreateEnrolmentTokenRequest,
    CreateEnrolmentTokenResponse,
    Region,
    ListRegionsRequest,
    ListRegionsResponse,
    CreateRegionRequest,
    CreateRegionResponse,
    UpdateRegionRequest,
    UpdateRegionResponse,
    DeleteRegionRequest,
    DeleteRegionResponse,
    User,
    ListUsersRequest,
    ListUsersResponse,
    GetUserRequest,
    GetUserResponse,
    CreateUserRequest,
    CreateUserResponse,
    UpdateUserRequest,
    UpdateUserResponse,
    DeleteUserRequest,
    DeleteUserResponse,
    KickUserRequest,
    KickUserResponse,
    ResetUserTrafficRequest,
    ResetUserTrafficResponse,
    Plan,
    ListPlansRequest,
    ListPlansResponse,
    CreatePlanRequest,
    CreatePlanResponse,
    Assignment,
    ListAssignmentsRequest,
    ListAssignmentsResponse,
    AssignUserRequest,
    AssignUserResponse,
    ReleaseUserRequest,
    ReleaseUserResponse,
    GetTrafficRequest,
    GetTrafficResponse,
    WatchEventsRequest,
    WatchEventsResponse,
    VerifyAuditRequest,
    VerifyAuditResponse,
}
