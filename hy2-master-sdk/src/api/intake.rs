//! Reading bodies. Who does not send all of one holds no place at work, and what is under way has bounds: in time, in
//! bytes, and in number for whoever is nobody.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use bytes::BytesMut;
use futures_util::FutureExt;
use http::{Extensions, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PATIENCE;
use super::address::ClientAddress;
use super::extract::too_large;
use super::problem::Problem;
use crate::auth::access::Caller;
use crate::domain::AdminId;
use crate::ratelimit::address_key;

/// How long a body may take of whoever is nobody.
const STRANGERS_PATIENCE: Duration = Duration::from_secs(5);

/// Largest body of whoever is nobody, in bytes: a login.
const STRANGERS_MOST: usize = 16 << 10;

/// Bodies of nobody that are under way at once, from one address and from all.
const STRANGERS: (usize, usize) = (32, 1_024);

/// Bytes of bodies that are under way at once, of one administrator and of all.
const KNOWN: (usize, usize) = (64 << 20, 256 << 20);

/// What is being read, for all requests. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Intake {
    strangers: Arc<Mutex<Shares<String>>>,
    known: Arc<Mutex<Shares<AdminId>>>,
}

impl Intake {
    /// Reads a body of at most so many bytes to its end. Unless it is there already, the request's [`Turn`] is given up
    /// meanwhile and taken again.
    ///
    /// # Errors
    ///
    /// A problem: the body is too large, too slow, or breaks off, or too much is under way.
    pub(super) async fn read(
        &self,
        request: &Extensions,
        body: Body,
        most: usize,
    ) -> Result<Bytes, Problem> {
        let turn = request.get::<Turn>();
        let caller = request.get::<Caller>().map(|caller| caller.admin);
        let reading = async {
            if let Some(admin) = caller {
                let mut share = Share::new(&self.known, admin);
                let grow = |bytes| share.grow(bytes, KNOWN);
                return in_time(PATIENCE, collect(body, most, grow)).await;
            }
            let from = request.get::<ClientAddress>();
            let from = from.map_or_else(|| "-".to_owned(), |from| address_key(from.0));
            let mut share = Share::new(&self.strangers, from);
            share.grow(1, STRANGERS)?;
            let read = collect(body, most.min(STRANGERS_MOST), |_| Ok(()));
            in_time(STRANGERS_PATIENCE, read).await
        };
        let mut reading = std::pin::pin!(reading);
        if let Some(read) = reading.as_mut().now_or_never() {
            return read;
        }
        if let Some(turn) = turn {
            turn.leave();
        }
        let read = reading.await?;
        turn.map_or(Ok(()), Turn::take)?;
        Ok(read)
    }
}

async fn in_time(
    patience: Duration,
    read: impl Future<Output = Result<Bytes, Problem>>,
) -> Result<Bytes, Problem> {
    let read = tokio::time::timeout(patience, read).await;
    read.unwrap_or_else(|_| {
        let detail = format!("the body took more than {} s", patience.as_secs());
        let status = StatusCode::REQUEST_TIMEOUT;
        Err(Problem::new(status, "timeout", "Took too long", detail))
    })
}

async fn collect(
    mut body: Body,
    most: usize,
    mut grow: impl FnMut(usize) -> Result<(), Problem>,
) -> Result<Bytes, Problem> {
    if body.size_hint().lower() > u64::try_from(most).unwrap_or(u64::MAX) {
        return Err(too_large(most));
    }
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::malformed("the body broke off"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if read.len() + data.len() > most {
            return Err(too_large(most));
        }
        grow(data.len())?;
        read.extend_from_slice(&data);
    }
    Ok(read.freeze())
}

/// How much everybody has under way.
#[derive(Debug)]
struct Shares<K> {
    all: usize,
    each: HashMap<K, usize>,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self {
            all: 0,
            each: HashMap::new(),
        }
    }
}

/// What one body has of it, until it is dropped.
struct Share<'a, K: Hash + Eq + Clone> {
    shares: &'a Mutex<Shares<K>>,
    whose: K,
    size: usize,
}

impl<'a, K: Hash + Eq + Clone> Share<'a, K> {
    const fn new(shares: &'a Mutex<Shares<K>>, whose: K) -> Self {
        Self {
            shares,
            whose,
            size: 0,
        }
    }

    fn grow(&mut self, by: usize, (most, most_of_all): (usize, usize)) -> Result<(), Problem> {
        let mut shares = self.shares.lock();
        let own = shares.each.get(&self.whose).copied().unwrap_or(0);
        if own + by > most || shares.all + by > most_of_all {
            return Err(Problem::busy());
        }
        shares.all += by;
        shares.each.insert(self.whose.clone(), own + by);
        self.size += by;
        Ok(())
    }
}

impl<K: Hash + Eq + Clone> Drop for Share<'_, K> {
    fn drop(&mut self) {
        let mut shares = self.shares.lock();
        shares.all -= self.size;
        let left = shares.each.get(&self.whose).copied().unwrap_or(0);
        match left.saturating_sub(self.size) {
            0 => shares.each.remove(&self.whose),
            left => shares.each.insert(self.whose.clone(), left),
        };
    }
}

/// A request's place among those at work.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    places: Arc<Semaphore>,
    held: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Turn {
    /// Takes a place.
    ///
    /// # Errors
    ///
    /// [`Problem::busy`] if there is none.
    pub(super) fn begin(places: &Arc<Semaphore>) -> Result<Self, Problem> {
        let turn = Self {
            places: Arc::clone(places),
            held: Arc::default(),
        };
        turn.take()?;
        Ok(turn)
    }

    fn take(&self) -> Result<(), Problem> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        *self.held.lock() = Some(place.map_err(|_| Problem::busy())?);
        Ok(())
    }

    /// Gives the place up.
    pub(super) fn leave(&self) {
        self.held.lock().take();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::IpAddr;

    use futures_util::{StreamExt, stream};

    use super::*;
    use crate::auth::access::{Credential, Role};

    /// A body of these pieces that then never ends.
    fn endless(pieces: Vec<Bytes>) -> Body {
        let sent = stream::iter(pieces.into_iter().map(Ok::<_, Infallible>));
        Body::from_stream(sent.chain(stream::pending()))
    }

    fn stranger(address: &str) -> Extensions {
        let mut request = Extensions::new();
        let address: IpAddr = address.parse().unwrap();
        request.insert(ClientAddress(address));
        request
    }

    fn known(admin: i64) -> Extensions {
        let mut request = Extensions::new();
        request.insert(Caller {
            admin: AdminId(admin),
            username: "ann".to_owned(),
            role: Role::Owner,
            credential: Credential::External,
            address: None,
            must_change_password: false,
        });
        request
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_slowly_holds_no_place_and_a_stranger_is_heard_for_seconds() {
        let (intake, places) = (Intake::default(), Arc::new(Semaphore::new(1)));
        let turn = Turn::begin(&places).unwrap();
        assert_eq!(places.available_permits(), 0);
        let mut request = stranger("192.0.2.1");
        request.insert(turn.clone());
        let mut read = Box::pin(intake.read(&request, endless(vec![Bytes::from("{")]), 100));
        assert!(read.as_mut().now_or_never().is_none());
        assert_eq!(places.available_permits(), 1);
        let began = tokio::time::Instant::now();
        assert_eq!(read.await.unwrap_err().status, 408);
        assert_eq!(began.elapsed(), STRANGERS_PATIENCE);
        // What is there already is taken without giving the place up.
        turn.take().unwrap();
        let read = intake.read(&request, Body::from("{}"), 100).await;
        assert_eq!(read.unwrap(), "{}");
        assert_eq!(places.available_permits(), 0);
        drop(request);
        drop(turn);
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_of_one_address_do_not_keep_others_out() {
        let intake = Intake::default();
        let request = stranger("192.0.2.1");
        let mut slow = Vec::new();
        for _ in 0..STRANGERS.0 {
            let mut read = Box::pin(intake.read(&request, endless(Vec::new()), 100));
            assert!(read.as_mut().now_or_never().is_none());
            slow.push(read);
        }
        let refused = intake.read(&request, Body::from("{}"), 100).await;
        assert_eq!(refused.unwrap_err().status, 503);
        let other = stranger("192.0.2.2");
        intake.read(&other, Body::from("{}"), 100).await.unwrap();
        intake.read(&known(1), Body::from("{}"), 100).await.unwrap();
        drop(slow);
        intake.read(&request, Body::from("{}"), 100).await.unwrap();
        let large = intake.read(&request, vec![b' '; STRANGERS_MOST + 1].into(), 1 << 20);
        assert_eq!(large.await.unwrap_err().status, 413);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_at_once_is_bounded_and_given_back() {
        let intake = Intake::default();
        let (request, other) = (known(1), known(2));
        let piece = Bytes::from(vec![0; 16 << 20]);
        let mut slow = Vec::new();
        for _ in 0..KNOWN.0 / piece.len() {
            let body = endless(vec![piece.clone()]);
            let mut read = Box::pin(intake.read(&request, body, 32 << 20));
            assert!(read.as_mut().now_or_never().is_none());
            slow.push(read);
        }
        let refused = intake.read(&request, Body::from("{}"), 100).await;
        assert_eq!(refused.unwrap_err().status, 503);
        intake.read(&other, Body::from("{}"), 100).await.unwrap();
        for read in slow {
            assert_eq!(read.await.unwrap_err().status, 408);
        }
        intake.read(&request, Body::from("{}"), 100).await.unwrap();
        assert_eq!(intake.known.lock().all, 0);
    }
}
