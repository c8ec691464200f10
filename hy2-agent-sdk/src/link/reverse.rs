//! The connection on which the master commands: opened by the agent, roles swapped.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    LinkError,
    channel::{Dial, connect},
};
use crate::{agent::Node, manager};

const GREETING_MAX: Duration = Duration::from_secs(5);

/// Opens it and serves until the master closes it.
pub(super) async fn open(node: Arc<Node>, master: String, ticket: Bytes) {
    if let Err(error) = try_open(node, &master, &ticket).await {
        let error = crate::engine::chain_of(&error);
        tracing::warn!(error, "reversed connection not opened");
    }
}

async fn try_open(node: Arc<Node>, master: &str, ticket: &[u8]) -> Result<(), LinkError> {
    let length = u8::try_from(ticket.len()).map_err(|_| LinkError::Protocol)?;
    let mut stream = connect(master, &node, Dial::Reverse).await?;
    let greeting = [&[length], ticket].concat();
    timeout(GREETING_MAX, async {
        stream.write_all(&greeting).await?;
        stream.flush().await
    })
    .await
    .map_err(|_| LinkError::TimedOut("greeting"))?
    .map_err(LinkError::Connect)?;
    manager::serve(node, stream).await;
    Ok(())
}
