//! The contracts between master, nodes and operators (feature `control`).
//!
//! - [`rpc`]: messages, clients and servers generated from `proto/hy2/control/v1/*.proto`
//!   (`scripts/generate-proto.sh`; the code is committed, a test regenerates it)
//! - [`hash`]: the hashes that a manifest binds
//! - [`DESCRIPTOR`]: the contracts for programs that read them
//!
//! Shapes, units and meaning of every field are documented in the `.proto` files and on the
//! generated types.

mod codec;
pub mod hash;

pub use self::codec::Codec;

/// Generated messages, clients and servers of package `hy2.control.v1`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::or_fun_call,
    clippy::use_self,
    reason = "generated"
)]
pub mod rpc {
    include!("gen/hy2.control.v1.rs");
}

/// The contracts themselves: an encoded `google.protobuf.FileDescriptorSet` of every `.proto` file and of what they import,
/// without comments.
pub const DESCRIPTOR: &[u8] = include_bytes!("../../proto/descriptor.binpb");

/// ALPN of an agent's connection to the master: MasterService.
pub const ALPN_MASTER: &[u8] = b"h2";

/// ALPN of the connection on which an agent serves NodeManager to the master, roles swapped.
pub const ALPN_REVERSE: &[u8] = b"hy2-rev/1";

/// DNS name in the certificate that the master shows to agents on its port for them, whatever
/// address they dial. Its chain ends with the CA itself, so that an agent that knows only the CA's
/// pin can follow it. No other certificate of the CA carries this name.
pub const MASTER_NAME: &str = "master.hy2.internal";

/// DNS name in the certificate of a key that signs manifests ([`rpc::SigningKey`]). No other
/// certificate of the CA carries this name: a node's own key must not pass for a signer.
pub const SIGNER_NAME: &str = "signer.hy2.internal";

/// What follows a node's UUID in the DNS name of its certificate: `<uuid>.node.hy2.internal`.
pub const NODE_NAME_SUFFIX: &str = ".node.hy2.internal";

/// Largest gRPC message in bytes, both ways.
pub const MAX_MESSAGE: usize = 4 << 20;

/// What an Ed25519 signature of a manifest is over: this, then the encoded
/// [`rpc::Manifest`].
pub const MANIFEST_SIGNATURE_CONTEXT: &[u8] = b"hy2 manifest v1\0";

/// What the known key signs to renew an expired certificate: this, the request, the time as
/// decimal seconds since 1970.
pub const RENEW_SIGNATURE_CONTEXT: &[u8] = b"hy2 renew v1\0";

/// Resource type of an encoded [`rpc::NodeConfig`].
pub const RESOURCE_CONFIG: &str = "config";

/// Resource type of a set of encoded [`rpc::UserEntry`].
pub const RESOURCE_USERS: &str = "users";

/// [`rpc::Node::billing_multiplier`] that stands for 1.
pub const MULTIPLIER_ONE: u64 = 1_000_000_000;
