//! The configuration file.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use hy2_daemon_runtime::configuration;
use hy2_master_sdk::{Builder, Master, MasterConfig, front::FrontConfig};
use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

/// What the file says. Every key but `database` and `keyFile` has a default; with the role `public`, `public.url` has none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// `sqlite:/path/to/file` or `postgres://user:password@host/name`.
    database: Database,
    /// Key that seals every secret in the database; made at the first run. Back it up apart.
    key_file: PathBuf,
    #[serde(default)]
    agents: Agents,
    #[serde(default)]
    api: Api,
    /// Wanted by who serves subscriptions; without it, the API gives the paths of their addresses.
    #[serde(default)]
    public: Option<Public>,
    /// What this process does; without it, everything. Background work is shared by all that run on
    /// one database, whatever their roles.
    #[serde(default = "every_role")]
    roles: Vec<Role>,
    /// Shared cache and rate-limit buckets; never the only copy of anything.
    #[serde(default)]
    redis: Option<Secret>,
    /// Receivers of webhooks on private addresses, also over plain HTTP.
    #[serde(default)]
    allow_private_webhooks: bool,
}

/// What a process does of what an orchestrator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Role {
    /// Keeps the nodes' sessions: tells them what to run, takes their traffic, lends quota
    Agents,
    /// Serves REST and AdminService
    Api,
    /// Serves subscriptions and self-service
    Public,
}

fn every_role() -> Vec<Role> {
    vec![Role::Agents, Role::Api, Role::Public]
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Agents {
    listen: String,
    /// Names and addresses by which agents reach this master; left out: agents go by the fixed name in its certificate.
    names: Option<Vec<String>>,
    /// How often agents report traffic, such as `10s`.
    traffic_interval: Option<Interval>,
    /// How often agents say that they live.
    heartbeat_interval: Option<Interval>,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:50052".into(),
            names: None,
            traffic_interval: None,
            heartbeat_interval: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Api {
    listen: SocketAddr,
    tls: Option<TlsFiles>,
    trusted_proxies: Vec<IpNet>,
}

/// A certificate and its key, PEM. Read again when they change.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TlsFiles {
    /// The certificate, and what leads from it to an authority.
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8081).into(),
            tls: None,
            trusted_proxies: Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Public {
    /// Where clients fetch their subscriptions.
    url: Url,
    #[serde(default = "public_listen")]
    listen: SocketAddr,
    #[serde(default)]
    tls: Option<TlsFiles>,
}

fn public_listen() -> SocketAddr {
    ([0, 0, 0, 0], 8080).into()
}

/// A span of time from 100 ms to an hour: `500ms`, `10s`, `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Interval(Duration);

impl TryFrom<String> for Interval {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        hy2_daemon_runtime::interval(&text).map(Self)
    }
}

/// Printed as `***`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
enum Database {
    Sqlite(PathBuf),
    Postgres(String),
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(_) => f.write_str("postgres://***"),
        }
    }
}

impl TryFrom<String> for Database {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(text)),
            _ => Err("must be sqlite:/path or postgres://user:password@host/name"),
        }
    }
}

/// Tells whether a text is a host name or an address, of IPv6 in brackets or without.
fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || url::Host::parse(text).is_ok()
}

/// Tells whether two listeners would want one port of one address. Port 0 is always another one, and `[::]` takes
/// connections over IPv4, too.
fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let [a, b] = [one, other].map(|address| address.ip().to_canonical());
    let covers = |a: IpAddr, b: IpAddr| a.is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    one.port() != 0 && one.port() == other.port() && (a == b || covers(a, b) || covers(b, a))
}

impl Config {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let config: Self = configuration(path)?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// Judges what the types of the values do not.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        // What is loopback is for this host; anything else wants TLS in front of it.
        let api = &self.api;
        let guarded = api.tls.is_some() || !api.trusted_proxies.is_empty();
        if !api.listen.ip().is_loopback() && !guarded {
            bail!(
                "api.listen: {} is not loopback: set api.tls, or put a proxy with TLS in front and \
                 name it in api.trustedProxies",
                api.listen
            );
        }
        if self.roles.is_empty() {
            bail!("roles: must name at least one of agents, api, public");
        }
        let listen = self.agents.listen.rsplit_once(':');
        let is_address = listen.is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok() && is_host(host)
        });
        if !is_address {
            bail!("agents.listen: must be an address and a port, such as 0.0.0.0:50052");
        }
        if let Some(names) = &self.agents.names {
            if names.is_empty() {
                bail!(
                    "agents.names: must have the name or address by which agents reach this master"
                );
            }
            if let Some(at) = names.iter().position(|name| !is_host(name)) {
                bail!("agents.names[{at}]: must be a host name or an address");
            }
        }
        if let Database::Postgres(url) = &self.database
            && !Url::parse(url).is_ok_and(|url| {
                // A socket's folder is a parameter.
                url.has_host() || url.query_pairs().any(|(key, _)| key == "host")
            })
        {
            bail!("database: must be postgres://user:password@host/name");
        }
        if let Some(Public { url, .. }) = &self.public {
            if !matches!(url.scheme(), "http" | "https") {
                bail!(
                    "public.url: must begin with https://, or http:// behind a proxy of your own"
                );
            }
            if url.query().is_some() || url.fragment().is_some() {
                bail!(
                    "public.url: must not have a ? or a #: the address of a subscription is this one with more behind it"
                );
            }
        }
        if let Some(url) = self.redis()
            && !Url::parse(url)
                .is_ok_and(|url| matches!(url.scheme(), "redis" | "rediss" | "redis+unix" | "unix"))
        {
            bail!("redis: must be redis://:password@host:port");
        }
        Ok(())
    }

    /// Judges whether what this process does has all it needs, and can listen side by side: to be asked when its
    /// roles are known.
    pub(crate) fn check_listeners(&self) -> anyhow::Result<()> {
        if self.has(Role::Public) && self.public.is_none() {
            bail!("public.url: is missing, and the role public serves what is fetched there");
        }
        // A name is not looked up: it may stand for another address tomorrow.
        let agents = self.agents().and_then(|listen| listen.parse().ok());
        let listeners = [
            ("agents.listen", agents),
            ("api.listen", self.has(Role::Api).then_some(self.api.listen)),
            ("public.listen", self.public_listen()),
        ];
        let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
        for (key, address) in listeners {
            let Some(address) = address else { continue };
            if let Some((other, at)) = taken.iter().find(|(_, at)| meet(*at, address)) {
                bail!(
                    "{key}: {address} meets {at} of {other}: each needs an address or a port of its own"
                );
            }
            taken.push((key, address));
        }
        Ok(())
    }

    /// Describes the master.
    pub(crate) fn master(&self) -> Builder {
        let builder = match &self.database {
            Database::Sqlite(path) => Master::sqlite(path),
            Database::Postgres(url) => Master::postgres(url),
        };
        let mut config = MasterConfig::default();
        config.names = self.agents.names.clone().unwrap_or_default();
        if let Some(Interval(interval)) = self.agents.traffic_interval {
            config.traffic_interval = interval;
        }
        if let Some(Interval(interval)) = self.agents.heartbeat_interval {
            config.heartbeat_interval = interval;
        }
        builder.key_file(&self.key_file).config(config)
    }

    /// Takes other roles than those of the file, if there are any.
    pub(crate) fn take_roles(&mut self, roles: &[Role]) {
        if !roles.is_empty() {
            self.roles = roles.to_vec();
        }
    }

    fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Tells whether all users come from a proxy on this host that is not named as one: limits per
    /// address would count them as one.
    pub(crate) fn hides_addresses(&self) -> bool {
        self.public_listen()
            .is_some_and(|listen| listen.ip().is_loopback())
            && self.api.trusted_proxies.is_empty()
    }

    /// Tells whether the API gives only the paths of subscriptions' addresses.
    pub(crate) fn lacks_public_url(&self) -> bool {
        self.has(Role::Api) && self.public.is_none()
    }

    /// Returns where subscriptions are served, if they are.
    fn public_listen(&self) -> Option<SocketAddr> {
        let public = self.public.as_ref().filter(|_| self.has(Role::Public));
        public.map(|public| public.listen)
    }

    /// Returns where the master key is.
    pub(crate) fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// Returns where agents are awaited, if they are.
    pub(crate) fn agents(&self) -> Option<&str> {
        self.has(Role::Agents)
            .then_some(self.agents.listen.as_str())
    }

    /// Returns the address of Redis.
    pub(crate) fn redis(&self) -> Option<&str> {
        self.redis.as_ref().map(|secret| secret.0.as_str())
    }

    /// Returns the certificates of the API and of the public port.
    pub(crate) fn tls(&self) -> [Option<&TlsFiles>; 2] {
        let public = self.public.as_ref();
        [
            self.api.tls.as_ref(),
            public.and_then(|public| public.tls.as_ref()),
        ]
    }

    /// Describes the side towards people and programs.
    pub(crate) fn front(&self) -> FrontConfig {
        let mut front = FrontConfig::without_public();
        front.api = self.has(Role::Api).then_some(self.api.listen);
        front.public = self.public_listen();
        front.public_url = self.public.as_ref().map(|public| public.url.clone());
        front.trusted_proxies.clone_from(&self.api.trusted_proxies);
        if self.allow_private_webhooks {
            front.targets = hy2_master_sdk::targets::TargetPolicy::Any;
        }
        front
    }
}

#[cfg(feature = "fuzzing")]
impl Config {
    /// Returns what the file would have to say for the same, as JSON, and so YAML.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let tls = |tls: &Option<TlsFiles>| {
            tls.as_ref()
                .map(|tls| serde_json::json!({"cert": tls.cert, "key": tls.key}))
        };
        let interval = |interval: Option<Interval>| {
            interval.map(|Interval(span)| format!("{}ms", span.as_millis()))
        };
        let database = match &self.database {
            Database::Sqlite(path) => format!("sqlite:{}", path.display()),
            Database::Postgres(url) => url.clone(),
        };
        let roles = self.roles.iter().map(|role| match role {
            Role::Agents => "agents",
            Role::Api => "api",
            Role::Public => "public",
        });
        let public = self.public.as_ref().map(|public| {
            serde_json::json!({
                "url": public.url,
                "listen": public.listen,
                "tls": tls(&public.tls),
            })
        });
        serde_json::json!({
            "database": database,
            "keyFile": self.key_file,
            "agents": {
                "listen": self.agents.listen,
                "names": self.agents.names,
                "trafficInterval": interval(self.agents.traffic_interval),
                "heartbeatInterval": interval(self.agents.heartbeat_interval),
            },
            "api": {
                "listen": self.api.listen,
                "tls": tls(&self.api.tls),
                "trustedProxies": self.api.trusted_proxies,
            },
            "public": public,
            "roles": roles.collect::<Vec<_>>(),
            "redis": self.redis(),
            "allowPrivateWebhooks": self.allow_private_webhooks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let read = Config::read(file.path());
        read.and_then(|config| config.check_listeners().map(|()| config))
            .map_err(|error| format!("{error:#}"))
    }

    const LEAST: &str = "database: sqlite:/tmp/x.db\nkeyFile: /tmp/x.key\npublic:\n  url: https://sub.example.org/\n";

    #[test]
    fn the_least_file_has_the_documented_ports() {
        let config = read(LEAST).expect("right");
        assert_eq!(config.agents(), Some("0.0.0.0:50052"));
        let front = config.front();
        assert_eq!(front.api, Some(([127, 0, 0, 1], 8081).into()));
        assert_eq!(front.public, Some(([0, 0, 0, 0], 8080).into()));
    }

    #[test]
    fn a_process_listens_for_its_roles_only() {
        let listens = |config: &Config| {
            let front = config.front();
            [
                config.agents().is_some(),
                front.api.is_some(),
                front.public.is_some(),
            ]
        };
        let mut config = read(&format!("{LEAST}roles: [api, public]\n")).expect("right");
        assert_eq!(listens(&config), [false, true, true]);
        config.take_roles(&[]);
        assert_eq!(listens(&config), [false, true, true]);
        config.take_roles(&[Role::Agents]);
        assert_eq!(listens(&config), [true, false, false]);
        assert_eq!(listens(&read(LEAST).expect("right")), [true; 3]);
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            (
                "database: mysql://x\nkeyFile: a\npublic: {url: 'https://a/'}",
                "must be sqlite:",
            ),
            ("keyFile: a\npublic: {url: 'https://a/'}", "database"),
            (&format!("{LEAST}colour: red\n"), "colour"),
            (
                &format!("{LEAST}api:\n  listen: 0.0.0.0:8081\n"),
                "api.listen",
            ),
            (&format!("{LEAST}api:\n  listen: nowhere\n"), "listen"),
            (&format!("{LEAST}api:\n  tls: {{cert: a.pem}}\n"), "key"),
            (
                "database: sqlite:/x\nkeyFile: a\npublic: {url: nowhere}",
                "url",
            ),
            (
                &format!("{LEAST}agents:\n  trafficInterval: 10\n"),
                "between 100ms and 60m",
            ),
            (
                "database: postgres://\nkeyFile: a\npublic: {url: 'https://a/'}",
                "database: must be postgres://",
            ),
            (
                "database: sqlite:/x\nkeyFile: a\npublic: {url: 'ftp://a/'}",
                "public.url",
            ),
            (&format!("{LEAST}roles: []\n"), "roles: must name"),
            (&format!("{LEAST}roles: [cook]\n"), "cook"),
            (&format!("{LEAST}redis: nonsense\n"), "redis: must be"),
            (&format!("{LEAST}redis: [1]\n"), "redis: "),
            (
                &format!("{LEAST}agents:\n  listen: nonsense\n"),
                "agents.listen",
            ),
            (
                &format!("{LEAST}agents:\n  listen: '127.0.0.1:99999'\n"),
                "agents.listen",
            ),
            (
                &format!("{LEAST}agents:\n  names: [a.example.org, 'bad name !!']\n"),
                "agents.names[1]",
            ),
            (
                &format!("{LEAST}agents:\n  heartbeatInterval: 5ms\n"),
                "between 100ms and 60m",
            ),
            (
                &format!("{LEAST}agents:\n  names: []\n"),
                "agents.names: must have",
            ),
            (&LEAST.replace(".org/", ".org/?a=b"), "public.url: must not"),
            (&LEAST.replace(".org/", ".org/#a"), "public.url: must not"),
            (
                &format!("{LEAST}api: {{listen: '127.0.0.1:8080'}}\n"),
                "public.listen: 0.0.0.0:8080 meets 127.0.0.1:8080 of api.listen",
            ),
            (
                &format!("{LEAST}api: {{listen: '127.0.0.1:50052'}}\n"),
                "api.listen: 127.0.0.1:50052 meets 0.0.0.0:50052 of agents.listen",
            ),
            (
                &format!("{LEAST}agents: {{listen: '[::]:8080'}}\n"),
                "public.listen: 0.0.0.0:8080 meets [::]:8080 of agents.listen",
            ),
            ("", "no settings"),
            (&format!("{LEAST}keyFile: /tmp/y.key\n"), "twice"),
        ];
        for (text, wanted) in cases {
            let error = read(text).expect_err(text);
            assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn only_who_serves_subscriptions_has_to_say_where() {
        let least = "database: sqlite:/tmp/x.db\nkeyFile: /tmp/x.key\n";
        let missing = "public.url: is missing";
        for (roles, wanted) in [
            ("roles: [api]\n", None),
            ("roles: [agents]\n", None),
            ("roles: [agents, api]\n", None),
            ("roles: [api, public]\n", Some(missing)),
            ("", Some(missing)),
            (
                "roles: [api]\npublic: {listen: '127.0.0.1:1'}\n",
                Some("url"),
            ),
        ] {
            let refused = read(&format!("{least}{roles}")).err();
            match (refused, wanted) {
                (refused, None) => assert_eq!(refused, None, "{roles}"),
                (Some(refused), Some(wanted)) => assert!(refused.contains(wanted), "{refused}"),
                (None, Some(_)) => panic!("{roles}"),
            }
        }
        let mut config = read(&format!("{least}roles: [api]\n")).expect("right");
        let front = config.front();
        assert_eq!((front.public, front.public_url), (None, None));
        assert!(config.lacks_public_url() && config.tls().iter().all(Option::is_none));
        config.take_roles(&[Role::Public]);
        let error = config.check_listeners().expect_err("no address");
        assert!(error.to_string().contains(missing), "{error}");
    }

    #[test]
    fn listeners_that_do_not_meet_are_let_be() {
        for more in [
            "api: {listen: '127.0.0.1:0'}\nagents: {listen: '127.0.0.1:0'}\n",
            "api: {listen: '127.0.0.1:9'}\nagents: {listen: '127.0.0.2:9'}\n",
            "api: {listen: '127.0.0.1:8080'}\nroles: [api]\n",
            "api: {listen: '127.0.0.1:9'}\nagents: {listen: 'master.example.org:9'}\n",
        ] {
            assert_eq!(read(&format!("{LEAST}{more}")).err(), None, "{more}");
        }
    }

    #[test]
    fn with_tls_or_a_proxy_the_api_may_be_reached_from_elsewhere() {
        for guard in [
            "tls: {cert: a.pem, key: a.key}",
            "trustedProxies: [10.0.0.0/8]",
        ] {
            let text = format!("{LEAST}api:\n  listen: 0.0.0.0:8081\n  {guard}\n");
            assert!(read(&text).is_ok(), "{guard}");
        }
    }

    #[test]
    fn databases_and_caches_are_reached_over_unix_sockets_too() {
        for (database, redis) in [
            (
                "postgres:///hy2?host=/run/postgresql",
                "redis+unix:///run/redis.sock",
            ),
            (
                "postgres://u@%2Frun%2Fpostgresql/hy2",
                "unix:///run/redis.sock",
            ),
        ] {
            let text = LEAST.replace("sqlite:/tmp/x.db", database) + &format!("redis: {redis}\n");
            assert!(read(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = LEAST.replace("sqlite:/tmp/x.db", "postgres://u:hunter2@h/d")
            + "redis: redis://:hunter3@h\n";
        let printed = format!("{:?}", read(&text).expect("right"));
        assert!(!printed.contains("hunter"), "{printed}");
    }
}
