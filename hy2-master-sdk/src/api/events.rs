//! Live events: server-sent events and WebSocket, resumable by number. Everybody is told of what they may read, as long
//! as they may.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream::{Stream, unfold};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::ApiState;
use super::authn::check_origin;
use super::extract::{Auth, Params};
use super::problem::Problem;
use crate::auth::access::{Caller, Operation};
use crate::auth::topics;
use crate::service::ServiceError;
use crate::store::events::{self, Event};

/// Events read at once.
const BATCH: i64 = 200;

/// How long an event stream may be silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How often the right to a stream is looked at again.
const RECHECK: Duration = Duration::from_secs(10);

/// Most topics that a stream may name.
const MAX_TOPICS: usize = 64;

pub(super) fn router() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/events", get(watch_events))
        .route("/api/v1/events/ws", get(watch_events_ws))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    /// Continue after this number; absent, or not given yet: from now on.
    after: Option<i64>,
    /// Comma-separated: `user.*,node.state_set`; absent: everything.
    topics: Option<String>,
}

/// Server-sent events. `Last-Event-ID`, or `after`, continues where a stream broke off.
async fn watch_events(
    State(state): State<ApiState>,
    auth: Auth,
    headers: HeaderMap,
    Params(query): Params<EventQuery>,
) -> Result<impl IntoResponse, Problem> {
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let after = last.and_then(|id| id.parse().ok()).or(query.after);
    let feed = Feed::open(state, auth.0, after, query.topics.as_deref()).await?;
    Ok(Sse::new(sse(feed)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn sse(feed: Feed) -> impl Stream<Item = Result<SseEvent, Infallible>> {
    unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        let sent = SseEvent::default()
            .id(event.seq.to_string())
            .event(event.topic.clone())
            .data(shape(&event));
        Some((Ok(sent), feed))
    })
}

/// The same over WebSocket: one text message per event.
async fn watch_events_ws(
    State(state): State<ApiState>,
    auth: Auth,
    headers: HeaderMap,
    Params(query): Params<EventQuery>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    // Browsers send cookies with a WebSocket from any page, and no page can set a header on it.
    if !headers.contains_key(http::header::AUTHORIZATION) {
        check_origin(&headers)?;
    }
    let feed = Feed::open(state, auth.0, query.after, query.topics.as_deref()).await?;
    Ok(upgrade
        .max_message_size(1_024)
        .on_upgrade(move |socket| pump(socket, feed)))
}

async fn pump(mut socket: WebSocket, mut feed: Feed) {
    let mut ping = tokio::time::interval(KEEP_ALIVE);
    loop {
        let message = tokio::select! {
            // Cancel safe: a lost event is read again, the feed has not moved past it.
            event = feed.next() => match event {
                Some(event) => Message::Text(shape(&event).into()),
                None => break,
            },
            // Cancel safe: the socket keeps what it has read.
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => continue,
            },
            _ = ping.tick() => Message::Ping(Default::default()),
        };
        match tokio::time::timeout(KEEP_ALIVE, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
}

fn shape(event: &Event) -> String {
    json!({
        "seq": event.seq, "topic": event.topic, "key": event.key,
        "at": event.at.to_string(), "payload": event.payload.0,
    })
    .to_string()
}

/// Reads events on, as long as the caller may.
pub(crate) struct Feed {
    state: ApiState,
    caller: Caller,
    topics: Vec<String>,
    hub: watch::Receiver<i64>,
    after: i64,
    ready: std::collections::VecDeque<Event>,
    checked: tokio::time::Instant,
}

impl Feed {
    pub(crate) async fn open(
        state: ApiState,
        caller: Caller,
        after: Option<i64>,
        topics: Option<&str>,
    ) -> Result<Self, Problem> {
        caller
            .access(Operation::WatchEvents)
            .map_err(ServiceError::from)?;
        let topics: Vec<String> = topics
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|topic| !topic.is_empty())
            .map(str::to_owned)
            .collect();
        if topics.len() > MAX_TOPICS {
            return Err(ServiceError::invalid("topics", "too many").into());
        }
        let store = state.service.store();
        let newest = store.in_time(1, events::newest(store)).await.flatten();
        let newest = newest.map_err(ServiceError::from)?;
        // A number that was not given yet comes from before a restore: what comes next is new.
        let after = after.map_or(newest, |after| after.min(newest));
        Ok(Self {
            hub: state.events.listen(),
            state,
            caller,
            topics,
            after,
            ready: std::collections::VecDeque::new(),
            checked: tokio::time::Instant::now(),
        })
    }

    /// Returns the next event; `None` when the caller may not listen any more, or the master stops.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an event is taken out last.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if self.checked.elapsed() >= RECHECK {
                self.recheck().await?;
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            self.hub.borrow_and_update();
            let store = self.state.service.store();
            let read = store.in_time(1, events::after(store, self.after, BATCH));
            match read.await.flatten() {
                Ok(read) if !read.is_empty() => {
                    // Perhaps the caller's own: what follows is told to whom they are then.
                    if read
                        .iter()
                        .any(|event| topics::changes_rights(&event.topic))
                    {
                        self.recheck().await?;
                    }
                    self.after = read.last().map_or(self.after, |event| event.seq);
                    let wanted = read
                        .into_iter()
                        .filter(|event| topics::matches(&self.topics, &event.topic))
                        .filter(|event| self.caller.hears(&event.topic, event.admin_id));
                    self.ready.extend(wanted);
                    continue;
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "events are not read; trying again"),
            }
            tokio::select! {
                changed = self.hub.changed() => changed.ok()?,
                // Numbers of another master's sealer come without a call on this hub.
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Asks again who the caller is and what they may do; `None` when they may not listen any more.
    async fn recheck(&mut self) -> Option<()> {
        let service = &self.state.service;
        let present = service.store().in_time(1, service.present(&self.caller));
        let present = present.await.ok()?.ok()?;
        present.access(Operation::WatchEvents).ok()?;
        self.caller = present;
        self.checked = tokio::time::Instant::now();
        let caller = &self.caller;
        self.ready
            .retain(|event| caller.hears(&event.topic, event.admin_id));
        Some(())
    }
}
