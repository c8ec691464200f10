use std::time::Duration;

use hy2_core::{
    Bandwidth,
    authenticator::UserLimits,
    client::{Amount, Direction, SpeedtestError},
    error::OpenError,
    server::ServerConfig,
};

use crate::{pair::Pair, recorder::Event};

fn offering() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.speed_test = true;
    config
}

#[tokio::test]
async fn a_speed_test_by_bytes_moves_just_these() {
    let (pair, users, recorder) = Pair::recorded(offering());
    let client = pair.client_of("alice").await;
    let bytes = 20_000_000;
    for direction in [Direction::Download, Direction::Upload] {
        let mut reported = 0;
        let result = client
            .speed_test(direction, Amount::Bytes(bytes), |progress| {
                assert!(progress.bytes >= reported);
                reported = progress.bytes;
            })
            .await
            .expect("speed test");
        assert_eq!(result.bytes, u64::from(bytes), "{direction:?}");
        assert!(!result.elapsed.is_zero());
        println!("{direction:?}: {:?}", result.elapsed);
    }
    recorder.until(2, Event::is_closed).await;
    let traffic = users.traffic("alice");
    assert_eq!(
        (traffic.tx, traffic.rx),
        (u64::from(bytes), u64::from(bytes))
    );
    assert_eq!(traffic.streams, 0);
}

#[tokio::test]
async fn a_speed_test_by_time_takes_that_time() {
    let (pair, users, recorder) = Pair::recorded(offering());
    let client = pair.client_of("alice").await;
    let time = Duration::from_millis(600);
    for direction in [Direction::Download, Direction::Upload] {
        let mut reports = 0;
        let result = client
            .speed_test(direction, Amount::Time(time), |_| reports += 1)
            .await
            .expect("speed test");
        assert!(reports > 0, "{direction:?}: {reports} reports");
        assert!(result.bytes > 0, "{direction:?}: {result:?}");
        let bounds = time - Duration::from_millis(100)..time + Duration::from_secs(2);
        assert!(
            bounds.contains(&result.elapsed),
            "{direction:?}: {result:?}"
        );
    }
    recorder.until(2, Event::is_closed).await;
    assert_eq!(users.traffic("alice").streams, 0);
}

/// A window full of bytes that were written but have not arrived is no part of the figure.
#[tokio::test(start_paused = true)]
async fn a_timed_upload_counts_what_arrived() {
    let (pair, users, _) = Pair::recorded(offering());
    let rate = 400_000;
    *users.limits.lock().expect("lock") = UserLimits {
        up: Some(Bandwidth::from_bytes_per_sec(rate)),
        ..UserLimits::default()
    };
    let client = pair.client_of("alice").await;
    let time = Amount::Time(Duration::from_secs(2));
    let result = client
        .speed_test(Direction::Upload, time, |_| {})
        .await
        .expect("speed test");
    let found = result.bytes as f64 / result.elapsed.as_secs_f64();
    assert!(found < 1.25 * rate as f64, "{found} of {rate}: {result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_speed_test_shows_the_limit_of_the_user() {
    let (pair, users, _) = Pair::recorded(offering());
    let rate = Bandwidth::from_bytes_per_sec(2_000_000);
    *users.limits.lock().expect("lock") = UserLimits {
        down: Some(rate),
        up: Some(rate),
        ..UserLimits::default()
    };
    let client = pair.client_of("alice").await;
    for direction in [Direction::Download, Direction::Upload] {
        let result = client
            .speed_test(direction, Amount::Bytes(8_000_000), |_| {})
            .await
            .expect("speed test");
        let rate = result.bytes as f64 / result.elapsed.as_secs_f64();
        assert!(
            (1_800_000.0..2_200_000.0).contains(&rate),
            "{direction:?}: {rate}"
        );
    }
}

#[tokio::test]
async fn a_server_that_does_not_offer_the_test_refuses_it() {
    let pair = Pair::start();
    let client = pair.client().await;
    let error = client
        .speed_test(Direction::Download, Amount::Bytes(1), |_| {})
        .await
        .expect_err("not offered");
    assert!(
        matches!(&error, SpeedtestError::Open(OpenError::Refused(_))),
        "{error}"
    );
}
