//! Fields of requests to AdminService, which a walker of its own looks at before the decoder: whatever it is that decodes,
//! no text with NUL and no moment out of bounds gets past it, and nothing else is refused.
//!
//! Planted bug: a moment could have less than no nanoseconds.

use std::{fmt::Debug, ops::RangeInclusive};

use hy2_master_sdk::fuzzing::grpc;
use hy2_proto::control::rpc;
use prost::Message;

/// Takes a byte that chooses the method, and its encoded request.
pub fn target(data: &[u8]) {
    let [choice, encoded @ ..] = data else { return };
    if let Some((method, check)) = METHODS.get(usize::from(*choice)) {
        check(method, encoded);
        // What is no frame of gRPC at all.
        let _ = grpc::wrong(&path(method), encoded);
    }
}

fn path(method: &str) -> String {
    format!("/hy2.control.v1.AdminService/{method}")
}

fn refuses(method: &str, encoded: &[u8]) -> bool {
    let length = u32::try_from(encoded.len()).expect("short").to_be_bytes();
    grpc::wrong(&path(method), &[&[0], &length[..], encoded].concat()).is_some()
}

fn check<M: Message + Default + Debug>(method: &str, encoded: &[u8]) {
    let refused = refuses(method, encoded);
    let Ok(message) = M::decode(encoded) else {
        return;
    };
    let wrong = is_wrong(&format!("{message:?}"));
    assert!(refused || !wrong, "let in: {message:?}");

    // A field that stands twice counts the last time only, but the first is looked at as well. Once it is encoded anew
    // there is nothing of that kind.
    let again = message.encode_to_vec();
    assert_eq!(refuses(method, &again), wrong, "{message:?}");

    // The decoder passes over groups; what was sent is as good as any.
    let group = [b"\xfb\x07", encoded, b"\xfc\x07"].concat();
    let behind = [&group[..], &again].concat();
    if M::decode(&behind[..]).is_ok() {
        assert_eq!(refuses(method, &behind), wrong, "behind a group: {message:?}");
    }
}

/// Tells of a message as it prints whether it has what must not come in.
fn is_wrong(printed: &str) -> bool {
    let mut outside = String::with_capacity(printed.len());
    let mut letters = printed.chars();
    while let Some(letter) = letters.next() {
        if letter != '"' {
            outside.push(letter);
            continue;
        }
        while let Some(letter) = letters.next().filter(|letter| *letter != '"') {
            if letter == '\\' && letters.next() == Some('0') {
                return true;
            }
        }
        outside.push('"');
    }
    outside.split("Timestamp { seconds: ").skip(1).any(|after| {
        let mut numbers = after.split(['}', ',', ' ']).filter_map(|it| it.parse().ok());
        let (seconds, nanos) = (numbers.next(), numbers.next());
        !SECONDS.contains(&seconds.expect("seconds")) || !NANOS.contains(&nanos.expect("nanos"))
    })
}

/// What google.protobuf.Timestamp may say: the years 1 to 9999.
const SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const NANOS: RangeInclusive<i64> = 0..=999_999_999;

macro_rules! methods {
    ($($method:ident($request:ident)),* $(,)?) => {
        /// All methods in the order of the contract; a test compares the list.
        pub const METHODS: &[(&str, fn(&str, &[u8]))] =
            &[$((stringify!($method), check::<rpc::$request>)),*];
    };
}

methods! {
    ListNodes(ListNodesRequest),
    GetNode(GetNodeRequest),
    UpdateNode(UpdateNodeRequest),
    DeleteNode(DeleteNodeRequest),
    SetNodeState(SetNodeStateRequest),
    RevokeNodeCertificates(RevokeNodeCertificatesRequest),
    ForfeitNode(ForfeitNodeRequest),
    CreateEnrolmentToken(CreateEnrolmentTokenRequest),
    ListRegions(ListRegionsRequest),
    CreateRegion(CreateRegionRequest),
    UpdateRegion(UpdateRegionRequest),
    DeleteRegion(DeleteRegionRequest),
    ListUsers(ListUsersRequest),
    GetUser(GetUserRequest),
    CreateUser(CreateUserRequest),
    UpdateUser(UpdateUserRequest),
    DeleteUser(DeleteUserRequest),
    KickUser(KickUserRequest),
    ResetUserTraffic(ResetUserTrafficRequest),
    ListPlans(ListPlansRequest),
    CreatePlan(CreatePlanRequest),
    ListAssignments(ListAssignmentsRequest),
    AssignUser(AssignUserRequest),
    ReleaseUser(ReleaseUserRequest),
    GetTraffic(GetTrafficRequest),
    WatchEvents(WatchEventsRequest),
    VerifyAudit(VerifyAuditRequest),
}
