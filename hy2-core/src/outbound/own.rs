//! The addresses of this machine: what is reached through them comes in over loopback, past every
//! firewall that closes a port to the outside.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use parking_lot::RwLock;

/// For how long a list of addresses is good; the system takes some ten microseconds to make one.
const FRESH: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Own {
    listed: Option<Instant>,
    addresses: HashSet<IpAddr>,
}

static OWN: RwLock<Option<Own>> = RwLock::new(None);

/// Tells whether an interface of this machine has this address, or had it in the last seconds.
pub(super) fn is_own(ip: IpAddr) -> bool {
    let now = Instant::now();
    if let Some(own) = &*OWN.read()
        && own.listed.is_some_and(|at| now.duration_since(at) < FRESH)
    {
        return own.addresses.contains(&ip);
    }
    let mut own = OWN.write();
    let own = own.get_or_insert_default();
    own.listed = Some(now);
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => own.addresses = interfaces.iter().map(if_addrs::Interface::ip).collect(),
        // What was known before is a better guess than nothing.
        Err(error) => tracing::warn!(%error, "the addresses of this machine are not known"),
    }
    own.addresses.contains(&ip)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::outbound::AddressPolicy;

    /// Says to the test below that it runs where the address is.
    const INSIDE: &str = "HY2_TEST_HAS_PUBLIC_ADDRESS";

    #[test]
    #[allow(clippy::print_stdout, reason = "says why it is not tried")]
    fn a_public_address_of_an_interface_is_refused() {
        let (own, other): (IpAddr, IpAddr) = ([8, 8, 4, 4].into(), [8, 8, 8, 8].into());
        let policy = AddressPolicy::public_only();
        if std::env::var_os(INSIDE).is_some() {
            assert!(!policy.permits(own) && policy.permits(other));
            assert!(!policy.permits("::ffff:8.8.4.4".parse().expect("ip")));
            assert!(
                policy
                    .allow("8.8.4.4/32".parse().expect("net"))
                    .permits(own)
            );
            return;
        }
        assert!(policy.permits(own));
        let test = std::env::current_exe().expect("test");
        let script = "ip address add 8.8.4.4/32 dev lo && exec \"$0\" --exact --nocapture \
                      outbound::own::tests::a_public_address_of_an_interface_is_refused";
        let shell = |script: &str| {
            let mut unshare = Command::new("unshare");
            unshare
                .args(["--net", "--map-root-user", "sh", "-c", script])
                .arg(&test);
            unshare.env(INSIDE, "1").output()
        };
        if !shell("ip address").is_ok_and(|tried| tried.status.success()) {
            println!("not tried: no network namespace here, or no `ip`");
            return;
        }
        let inside = shell(script).expect("unshare");
        let said = String::from_utf8_lossy(&inside.stdout);
        assert!(
            inside.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    #[test]
    fn addresses_of_interfaces_are_own_and_others_are_not() {
        assert!(is_own("127.0.0.1".parse().expect("ip")));
        assert!(!is_own("192.0.2.1".parse().expect("ip")));
        assert!(!is_own("2001:db8::1".parse().expect("ip")));
    }
}
