//! What happens, as it happens.

use std::time::Duration;

use clap::Args;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use crate::{
    client::{Client, SILENCE, in_time},
    failure::Failure,
    output::{self, Output},
};

/// Longest line of an event, in bytes.
const MAX_LINE: usize = 16 << 20;

/// Follows what happens until it is interrupted. With --json, one object a line. Continues where a
/// connection broke off.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only these, again for each: user.*, node.revoked
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,

    /// Begin behind the event with this number; absent: with what comes
    #[arg(long, value_name = "SEQ")]
    after: Option<i64>,

    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

impl Events {
    pub(crate) async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        let mut after = self.after;
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut connected = false;
        let mut pause = Duration::from_secs(1);
        while left > 0 {
            let broken = match self
                .follow(client, output, &mut after, &mut left, &mut connected)
                .await
            {
                Ok(()) => "the stream ended".to_owned(),
                // What never worked, or is not allowed any more, is not tried again.
                Err(failure) if !connected || failure.exit_code() != 6 => return Err(failure),
                Err(failure) => failure.to_string(),
            };
            if left == 0 {
                break;
            }
            output.note(&format!("{broken}; again in {} s", pause.as_secs()));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
        Ok(())
    }

    async fn follow(
        &self,
        client: &Client,
        output: &Output,
        after: &mut Option<i64>,
        left: &mut u64,
        connected: &mut bool,
    ) -> Result<(), Failure> {
        let mut query = Vec::new();
        if !self.topics.is_empty() {
            query.push(("topics", self.topics.join(",")));
        }
        query.extend(after.map(|after| ("after", after.to_string())));
        let opening = client.open(Method::GET, "/events", &query, None, &[]);
        let response = in_time(SILENCE, opening).await??;
        *connected = true;
        let mut lines = Lines {
            body: response.into_body(),
            buffer: Vec::new(),
        };
        while *left > 0 {
            let Some(line) = lines.next().await? else {
                return Ok(());
            };
            // Every event is one line of data; the rest repeats what is in it.
            let Some(data) = line.strip_prefix("data:") else {
                continue;
            };
            let event: Value = serde_json::from_str(data.trim())
                .map_err(|_| Failure::Unreachable("an event is not JSON".to_owned()))?;
            *after = event["seq"].as_i64().or(*after);
            *left -= 1;
            match output.is_json() {
                true => output.line(&event.to_string())?,
                false => output.line(&words(&event))?,
            }
        }
        Ok(())
    }
}

fn words(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    output::clean(&format!(
        "{} {:<24} {} {}",
        text("at"),
        text("topic"),
        text("key"),
        event["payload"]
    ))
}

struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// Returns the next line, `None` at the end.
    async fn next(&mut self) -> Result<Option<String>, Failure> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(Failure::Unreachable("an event is too long".to_owned()));
            }
            match in_time(SILENCE, self.body.frame()).await? {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(Failure::Unreachable(format!(
                        "the stream broke off: {error}"
                    )));
                }
            }
        }
    }
}
