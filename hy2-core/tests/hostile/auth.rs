//! Guessing passwords, and holding more connections than one may.

use hy2_core::{Client, error::ConnectError};

use crate::{
    attacker::{Answer, Attacker, answer, is_welcome},
    server::{HONEST, MALLORY, ServerProcess},
    wire,
};

/// Asks twice within one second of the `date` field, and returns both answers.
async fn same_second(attacker: &Attacker, first: &[u8], second: &[u8]) -> (Answer, Answer) {
    let mut last = None;
    for _ in 0..20 {
        let (one, two) = tokio::join!(attacker.ask(first), attacker.ask(second));
        if one == two {
            return (one, two);
        }
        last = Some((one, two));
    }
    last.expect("asked")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sixth_password_is_refused_though_it_is_right() {
    let mut server = ServerProcess::start("").await;
    let attacker = Attacker::connect(&server).await;
    for guess in 0..5 {
        let Answer::Bytes(answer) = attacker.ask(&wire::auth(&format!("mallory:{guess}"))).await
        else {
            panic!("no answer");
        };
        assert!(!is_welcome(&answer));
    }
    // And what comes back is what any other POST gets, byte for byte.
    let other = wire::request("POST", "hysteria", "/", &[]);
    let (right, any) = same_second(&attacker, &wire::auth(MALLORY), &other).await;
    assert_eq!(right, any);
    let Answer::Bytes(bytes) = right else {
        panic!("no answer");
    };
    assert!(!bytes.is_empty() && !is_welcome(&bytes));
    // A new connection starts afresh.
    Attacker::let_in(&server).await;
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_gets_what_any_other_post_gets() {
    let mut server = ServerProcess::start("").await;
    let attacker = Attacker::connect(&server).await;
    let other = wire::request("POST", "localhost", "/contact", &[]);
    for guess in [
        "",
        "alice",
        "alice:",
        "alice:wrong",
        "\u{0}",
        &"x".repeat(4000),
    ] {
        let (wrong, any) = same_second(&attacker, &wire::auth(guess), &other).await;
        if guess == "\u{0}" {
            // No field value at all in HTTP: refused before anyone looks for a password.
            assert!(matches!(wrong, Answer::Reset(_)), "{wrong:?}");
            continue;
        }
        assert!(
            matches!(&wrong, Answer::Bytes(bytes) if !bytes.is_empty()),
            "{wrong:?}"
        );
        assert_eq!(wrong, any, "{guess:?}");
    }
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_holds_no_more_connections_than_allowed() {
    let mut server = ServerProcess::start("connections=2").await;
    let first = Attacker::let_in(&server).await;
    let _second = Attacker::let_in(&server).await;
    let third = Attacker::connect(&server).await;
    let (mut send, recv) = third.open(&wire::auth(MALLORY)).await;
    send.finish().expect("open");
    assert!(matches!(answer(recv).await, Answer::Bytes(bytes) if !is_welcome(&bytes)));
    // Others are not concerned.
    server.is_well().await;
    // A place becomes free with a connection's end.
    first.conn.close(0x100u32.into(), b"");
    server
        .until("one left", |figures| figures.get("authenticated") == 1)
        .await;
    Attacker::let_in(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_beyond_the_limit_are_turned_away() {
    let mut server = ServerProcess::start("unauthenticated=20").await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(Attacker::connect(&server).await);
    }
    let refused = Attacker::try_connect(&server, crate::attacker::transport()).await;
    assert!(refused.is_err());
    strangers
        .pop()
        .expect("one of them")
        .conn
        .close(0x100u32.into(), b"");
    server
        .until("a place", |figures| figures.get("connections") == 19)
        .await;
    // Users give their place back at once.
    for _ in 0..3 {
        server.is_well().await;
    }
    let wrong = Client::connect(server.client_config("alice:wrong")).await;
    assert!(matches!(wrong, Err(ConnectError::AuthRejected { .. })));
}

/// Strangers who stay for ever do not lock users out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_stranger_gives_way_to_a_user() {
    let mut server = ServerProcess::start("unauthenticated=20").await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(Attacker::connect(&server).await);
    }
    // Turned away while all strangers are new.
    while Client::connect(server.client_config(HONEST)).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(strangers[0].closed().await, 0x100);
    assert!(strangers[19].conn.close_reason().is_none());
    server.is_well().await;
}
