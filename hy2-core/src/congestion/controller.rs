//! The one type that implements quinn's `Controller`.

use std::{
    any::Any,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

use super::{
    Algorithm, INITIAL_PACKETS,
    bbr::Bbr,
    brutal::Brutal,
    figures::add,
    gate::Gate,
    guard::News,
    reno::Reno,
    shared::{Carried, Shared},
};

/// Builds controllers on one connection's shared state, the first and those after a migration.
#[derive(Debug)]
pub(super) struct Factory(Arc<Shared>);

impl Factory {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Paced::new(Arc::clone(&self.0), now, mtu.into()))
    }
}

/// The algorithm in force.
#[derive(Debug, Clone)]
enum State {
    Brutal(Brutal),
    Bbr(Box<Bbr>),
    Reno(Reno),
}

impl State {
    fn new(algorithm: Algorithm, now: Instant, mtu: u64, carried: Option<Carried>) -> Self {
        match algorithm {
            Algorithm::Brutal {
                rate,
                loss_compensation,
                overclaim_guard,
            } => {
                let ack_rate = carried.and_then(|carried| carried.ack_rate);
                Self::Brutal(Brutal::new(
                    now,
                    rate,
                    loss_compensation,
                    overclaim_guard,
                    ack_rate,
                ))
            }
            Algorithm::Bbr(profile) => Self::Bbr(Box::new(Bbr::new(now, profile, mtu))),
            Algorithm::Reno => Self::Reno(Reno::new(mtu)),
        }
    }
}

/// An algorithm behind the gate.
#[derive(Debug)]
pub(super) struct Paced {
    shared: Arc<Shared>,
    generation: u64,
    state: State,
    gate: Gate,
    mtu: u64,
    smoothed_rtt: Duration,
    in_flight: u64,
    /// While quinn validates a new path it reports losses but no acknowledgements: such losses
    /// say nothing about the path.
    validating: bool,
    /// Of the acknowledgement frame being processed.
    batch: Batch,
    /// Mean size of an acknowledged packet: quinn reports losses in bytes.
    packet_size: f64,
    announced_send_window: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    acked_bytes: u64,
    acked_packets: u64,
    lost_packets: u64,
    lost_bytes: u64,
}

impl Paced {
    fn new(shared: Arc<Shared>, now: Instant, mtu: u64) -> Self {
        let carried = shared.carried();
        let generation = shared.generation();
        let state = State::new(shared.algorithm(), now, mtu, carried);
        let nanos = shared.nanos(now);
        let mut gate = Gate::new(mtu);
        gate.set_rate(nanos, 0);
        let mut this = Self {
            shared,
            generation,
            state,
            gate,
            mtu,
            smoothed_rtt: carried.map_or(Duration::ZERO, |carried| carried.smoothed_rtt),
            in_flight: 0,
            validating: carried.is_some(),
            batch: Batch::default(),
            packet_size: mtu as f64,
            announced_send_window: 0,
        };
        this.publish(now);
        this
    }

    /// Takes chance away.
    #[cfg(feature = "fuzzing")]
    pub(super) fn draw_from(&mut self, seed: u32) {
        if let State::Bbr(bbr) = &mut self.state {
            bbr.draw_from(seed);
        }
    }

    /// Notices a command given through the handle.
    fn follow_command(&mut self, now: Instant) {
        let generation = self.shared.generation();
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let algorithm = self.shared.algorithm();
        let ack_rate = match &self.state {
            State::Brutal(brutal) => Some(brutal.ack_rate()),
            _ => None,
        };
        let carried = Carried {
            smoothed_rtt: self.smoothed_rtt,
            ack_rate,
        };
        self.state = State::new(algorithm, now, self.mtu, Some(carried));
        self.publish(now);
    }

    /// Puts rate and window into force and into the figures.
    fn publish(&mut self, now: Instant) {
        let (target, pacing, ack_rate) = match &self.state {
            State::Brutal(brutal) => {
                let rate = brutal.pacing_rate();
                (brutal.target(), rate, brutal.ack_rate().as_f64())
            }
            State::Bbr(bbr) => (
                bbr.target(),
                bbr.pacing_rate(self.smoothed_rtt, self.mtu),
                1.0,
            ),
            State::Reno(_) => (self.reno_rate(), 0, 1.0),
        };
        self.gate.set_rate(self.shared.nanos(now), pacing);
        let figures = &self.shared.figures;
        figures.target_rate.store(target, Relaxed);
        figures.pacing_rate.store(pacing, Relaxed);
        figures
            .ack_rate_millionths
            .store((ack_rate * 1e6) as u64, Relaxed);
        figures
            .smoothed_rtt_nanos
            .store(nanos_of(self.smoothed_rtt), Relaxed);
        figures.set_in_flight(self.in_flight);
        self.publish_window();
        let wanted = self.shared.send_window_target();
        if wanted.abs_diff(self.announced_send_window) > self.announced_send_window / 4 {
            self.announced_send_window = wanted;
            self.shared.request_send_window_update();
        }
    }

    fn publish_window(&self) {
        let window = self.own_window();
        self.shared.figures.window.store(window, Relaxed);
    }

    /// Takes one acknowledged packet. Apart from `on_ack` because only quinn can make an `RttEstimator`.
    pub(super) fn acknowledged(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        smoothed_rtt: Duration,
    ) {
        if self.validating {
            self.validating = false;
            self.batch = Batch::default();
        }
        self.smoothed_rtt = smoothed_rtt;
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.batch.acked_bytes += bytes;
        self.batch.acked_packets += 1;
        self.packet_size += (bytes as f64 - self.packet_size) / 64.0;
        match &mut self.state {
            State::Brutal(_) => {}
            State::Bbr(bbr) => bbr.on_ack(now, sent, bytes),
            State::Reno(reno) => reno.on_ack(sent, bytes, app_limited, self.mtu),
        }
    }

    fn reno_rate(&self) -> u64 {
        match self.smoothed_rtt.as_secs_f64() {
            rtt if rtt > 0.0 => (self.own_window() as f64 / rtt) as u64,
            _ => 0,
        }
    }

    /// Bytes that the algorithm allows in flight.
    fn own_window(&self) -> u64 {
        match &self.state {
            State::Brutal(brutal) => brutal.window(self.smoothed_rtt, self.mtu),
            State::Bbr(bbr) => bbr.window(self.mtu),
            State::Reno(reno) => reno.window(),
        }
    }
}

impl Controller for Paced {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.follow_command(now);
        if let State::Bbr(bbr) = &mut self.state {
            bbr.on_sent(now, self.in_flight, self.mtu);
        }
        self.in_flight += bytes;
        self.gate.on_sent(self.shared.nanos(now), bytes);
        self.shared.on_sent(bytes);
        self.shared.figures.in_flight.store(self.in_flight, Relaxed);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.acknowledged(now, sent, bytes, app_limited, rtt.get());
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        self.follow_command(now);
        self.gate.resynchronise();
        self.in_flight = in_flight;
        let batch = std::mem::take(&mut self.batch);
        if self.validating {
            return;
        }
        match &mut self.state {
            State::Brutal(brutal) => {
                brutal.on_batch(now, batch.acked_packets, batch.lost_packets);
                let news = News {
                    packets: batch.acked_packets + batch.lost_packets,
                    acked: batch.acked_bytes,
                    lost: batch.lost_bytes,
                };
                brutal.guard(now, news, self.smoothed_rtt);
            }
            State::Bbr(bbr) => {
                bbr.on_batch(now, batch.acked_bytes, in_flight, app_limited, self.mtu);
            }
            State::Reno(_) => {}
        }
        let figures = &self.shared.figures;
        add(&figures.bytes_acked, batch.acked_bytes);
        add(&figures.packets_acked, batch.acked_packets);
        let ack_rate = match &self.state {
            State::Brutal(brutal) => Some(brutal.ack_rate()),
            _ => None,
        };
        self.shared.carry(Carried {
            smoothed_rtt: self.smoothed_rtt,
            ack_rate,
        });
        self.publish(now);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.gate.resynchronise();
        self.in_flight = self.in_flight.saturating_sub(lost_bytes);
        self.shared.figures.set_in_flight(self.in_flight);
        // An ECN mark comes with no lost bytes; only Reno heeds it.
        let packets = if lost_bytes == 0 {
            0
        } else {
            ((lost_bytes as f64 / self.packet_size.max(1.0)).round() as u64).max(1)
        };
        if !self.validating {
            self.batch.lost_packets += packets;
            self.batch.lost_bytes += lost_bytes;
            add(&self.shared.figures.bytes_lost, lost_bytes);
            add(&self.shared.figures.packets_lost, packets);
        }
        match &mut self.state {
            State::Brutal(_) => {}
            State::Bbr(_) if self.validating => {}
            State::Bbr(bbr) => bbr.on_loss(lost_bytes, is_persistent_congestion, self.mtu),
            State::Reno(reno) => reno.on_loss(now, sent, is_persistent_congestion, self.mtu),
        }
        self.publish_window();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.gate.set_mtu(self.mtu);
        self.publish_window();
    }

    fn window(&self) -> u64 {
        if matches!(self.state, State::Reno(_)) || !self.shared.is_attached() {
            return self.own_window().max(self.mtu + 1);
        }
        let room = || self.own_window().saturating_sub(self.in_flight);
        self.gate.window(&self.shared, room)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.own_window();
        metrics.pacing_rate = Some(
            self.shared
                .figures
                .pacing_rate
                .load(Relaxed)
                .saturating_mul(8),
        );
        metrics
    }

    /// quinn clones the controller for a path that differs in its port only.
    fn clone_box(&self) -> Box<dyn Controller> {
        let now = self.shared.now();
        let mut gate = Gate::new(self.mtu);
        let rate = self.shared.figures.pacing_rate.load(Relaxed);
        gate.set_rate(now.unwrap_or(0), rate);
        let mut state = self.state.clone();
        if let (State::Bbr(bbr), Some(at)) =
            (&mut state, now.and_then(|now| self.shared.instant(now)))
        {
            bbr.on_new_path(at);
        }
        Box::new(Self {
            shared: Arc::clone(&self.shared),
            generation: self.generation,
            state,
            gate,
            mtu: self.mtu,
            smoothed_rtt: self.smoothed_rtt,
            in_flight: 0,
            validating: true,
            batch: Batch::default(),
            packet_size: self.packet_size,
            announced_send_window: self.announced_send_window,
        })
    }

    fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn nanos_of(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use quinn::{Runtime, TokioRuntime};

    use super::*;
    use crate::congestion::BbrProfile;

    /// Losses may be found long before anything is acknowledged again.
    #[test]
    fn a_loss_shows_in_the_figures_at_once() {
        let shared = Arc::new(Shared::new(Algorithm::Bbr(BbrProfile::Standard)));
        let now = Instant::now();
        let mut controller = Paced::new(Arc::clone(&shared), now, 1200);
        let window = || shared.figures.window.load(Relaxed);
        let before = window();
        assert_eq!(before, controller.metrics().congestion_window);
        controller.on_sent(now, 12_000, 0);
        controller.on_congestion_event(now, now, true, 12_000);
        assert!(window() < before, "{} of {before}", window());
        assert_eq!(window(), controller.metrics().congestion_window);
    }

    /// Paths that short are not paced, but while they are measured anew, every ten seconds: with
    /// nothing on its way there is then no acknowledgement that would end a pause.
    #[tokio::test(start_paused = true)]
    async fn a_question_on_a_short_path_never_waits() {
        // Ever longer: the shortest is not seen again.
        let mut rtt = Duration::from_micros(300);
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
        let shared = Arc::new(Shared::new(Algorithm::Bbr(BbrProfile::Standard)));
        shared.set_attached(&runtime);
        let mut controller = Paced::new(shared, runtime.now(), 1200);
        let begun = runtime.now();
        let mut paced = false;
        while runtime.now() - begun < Duration::from_secs(35) {
            let sent = runtime.now();
            let waited = || sent - begun;
            assert!(controller.window() > 1200, "closed after {:?}", waited());
            controller.window();
            controller.on_sent(sent, 1200, 0);
            tokio::time::advance(rtt).await;
            let now = runtime.now();
            controller.acknowledged(now, sent, 1200, true, rtt);
            controller.on_end_acks(now, 0, true, None);
            rtt += Duration::from_nanos(30);
            paced |= controller.metrics().pacing_rate != Some(0);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(paced, "it was never measured anew");
    }
}
