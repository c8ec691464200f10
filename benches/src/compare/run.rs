//! Runs the scenarios in pairs and writes what came of it.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{self, Command},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hy2_link_emulator::model::LinkConfig;
use serde_json::{Value, json};

use crate::{
    Arguments, crowd, limit, load,
    machine::{self, Watch},
    matrix,
    pair::{self, Between, Side, Surroundings, Wanted, Whose},
    plot,
    process::Process,
    progress::Progress,
    report::{Figures, HEAD, Row, Sample, by_line},
    scenario::{self, Load, Scenario, Setup},
};

pub(crate) fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.quick {
        arguments.runs = arguments.runs.min(2);
        arguments.mebibytes = arguments.mebibytes.min(64);
        arguments.seconds = arguments.seconds.min(0.3);
        arguments.idle = arguments.idle.min(100);
        arguments.cell_seconds = arguments.cell_seconds.min(2.0);
    }
    // A socket per connection, and what a process has anyway.
    let files = arguments.idle + 200;
    if "idle".contains(&arguments.only) && machine::most_files().is_some_and(|most| most < files) {
        bail!(
            "{} idle connections need {files} open files per process: raise `ulimit -n`, or hold \
             fewer with --idle.",
            arguments.idle
        );
    }
    let in_use = machine::use_of_cores();
    if machine::is_busy(in_use) && !arguments.force {
        bail!(
            "{:.0} % of this machine's cores are in use: figures would mean little. Stop what runs, \
             or set FORCE=1 (--force), and the results will say so.",
            in_use * 100.0
        );
    }
    let scratch = std::env::temp_dir().join(format!("hy2-compare-{}", process::id()));
    fs::create_dir_all(&scratch)?;
    let result = run_in(&arguments, &scratch, in_use);
    fs::remove_dir_all(&scratch)?;
    result
}

fn run_in(arguments: &Arguments, scratch: &Path, in_use: f64) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let around = Surroundings {
        certificate: scratch.join("cert.pem"),
        key: scratch.join("key.pem"),
        origin: load::origin()?,
        udp_origin: load::udp_origin()?,
        peer: arguments
            .peer
            .exists()
            .then(|| arguments.peer.canonicalize())
            .transpose()?,
        threads: arguments.threads,
    };
    fs::write(&around.certificate, made.cert.pem())?;
    fs::write(&around.key, made.signing_key.serialize_pem())?;
    if around.peer.is_none() && arguments.bars {
        bail!(
            "no reference peer at {} (it needs Go: interop/build.sh): without it there is no bar \
             to judge",
            arguments.peer.display()
        );
    }
    if around.peer.is_none() {
        println!(
            "No reference peer at {} (it needs Go: interop/build.sh): only our column, no ratios.",
            arguments.peer.display()
        );
    }
    let mut machine = machine::describe(in_use);
    machine["forced"] = (machine::is_busy(in_use)).into();
    machine["quick"] = arguments.quick.into();
    machine["runs"] = arguments.runs.into();
    machine["threads_of_hy2"] = arguments.threads.into();
    machine["tunables_of_hy2"] = pair::tunables().into();
    let watch = Watch::start();
    machine["sides"] = around.facts()?;
    machine["cores_in_use_by_others_meanwhile"] = rounded(watch.others()).into();
    println!("{machine:#}");

    let scenarios: Vec<Scenario> = scenario::all()
        .into_iter()
        .filter(|scenario| scenario.name.contains(&arguments.only))
        .collect();
    let sides = around.sides().len();
    let idle = "idle".contains(&arguments.only);
    let limited = limit::NAME.contains(&arguments.only);
    // Idle ones also as our server ships.
    let alone = if idle { 2 * (sides + 1) } else { 0 } + if limited { sides } else { 0 };
    let runs = scenarios
        .iter()
        .map(|scenario| scenario.runs(arguments.runs) + 1);
    let steps = runs.sum::<usize>() * sides + alone;
    let mut progress = Progress::new(steps);
    let mut rows = Vec::new();
    println!("\n{HEAD}");
    for scenario in scenarios {
        let row = compare(&around, scenario, arguments, &mut progress)?;
        println!("{}", row.line());
        rows.push(row);
    }
    let mut missed: Vec<String> = rows.iter().flat_map(Row::missed).collect();
    // What is not a row of the table: name, and each side's figures.
    let mut other = Vec::new();
    if idle {
        for used in [false, true] {
            other.push(watched(|| {
                compare_idle(&around, used, arguments, &mut progress, &mut missed)
            })?);
            other.push(watched(|| {
                idle_as_shipped(&around, used, arguments, &mut progress)
            })?);
        }
    }
    if limited {
        let span = Duration::from_secs(if arguments.quick { 3 } else { 30 });
        other.push(watched(|| {
            limit::compare(&around, span, &mut progress, &mut missed)
        })?);
    }
    for missed in &missed {
        println!("below its bar: {missed}");
    }
    // `--matrix --only nothing` is the matrix alone.
    if let Some(out) = &arguments.out
        && !(rows.is_empty() && other.is_empty())
    {
        write(out, &machine, &rows, &other, &missed)?;
    }
    if arguments.matrix {
        let extent = matrix::Extent {
            runs: arguments.runs,
            seconds: arguments.cell_seconds,
            quick: arguments.quick,
            lanes: arguments.lanes,
        };
        let out = arguments.out.as_deref();
        matrix::run(
            &around,
            extent,
            &arguments.cells,
            out,
            &machine,
            &mut missed,
        )?;
    }
    if arguments.bars && !missed.is_empty() {
        bail!("below the bar: {}", missed.join(", "));
    }
    Ok(())
}

/// Runs what is not a row of the table, prints it, and says what others used meanwhile.
fn watched(measure: impl FnOnce() -> Result<(String, Value)>) -> Result<(String, Value)> {
    let watch = Watch::start();
    let (mut line, mut value) = measure()?;
    let others = rounded(watch.others());
    value["others_cores"] = others.into();
    line += &machine::mark(&[others]);
    println!("{line}");
    Ok((line, value))
}

fn rounded(cores: f64) -> f64 {
    (cores * 100.0).round() / 100.0
}

/// Runs one scenario, in turn, both sides being up all the time.
fn compare(
    around: &Surroundings,
    scenario: Scenario,
    arguments: &Arguments,
    progress: &mut Progress,
) -> Result<Row> {
    // Leaves the server's core alone.
    let _elsewhere = scenario.setup.one_core.then(Elsewhere::go).transpose()?;
    let mut figures = [Figures::default(), Figures::default()];
    let sides: Vec<Running> = around
        .sides()
        .iter()
        .map(|whose| Running::start(around, *whose, &scenario))
        .collect::<Result<_>>()
        .with_context(|| scenario.name.clone())?;
    // One uncounted run of each first.
    for run in 0..=scenario.runs(arguments.runs) {
        for (side, (figures, whose)) in sides.iter().zip(figures.iter_mut().zip(around.sides())) {
            progress.step(&format!("{} ({whose:?})", scenario.name));
            let watch = Watch::start();
            let mut sample = side
                .measure(around, &scenario, arguments)
                .with_context(|| format!("{} ({whose:?})", scenario.name))?;
            sample.others = rounded(watch.others());
            if run > 0 {
                figures.0.push(sample);
            }
        }
    }
    let [ours, reference] = figures;
    Ok(Row {
        scenario,
        ours,
        reference: around.peer.is_some().then_some(reference),
    })
}

/// What a scenario needs running.
enum Running {
    Pair(Box<Side>),
    Server(Process, String),
}

impl Running {
    fn start(around: &Surroundings, whose: Whose, scenario: &Scenario) -> Result<Self> {
        if let Load::Connects { .. } = scenario.load {
            let (server, address) = around.server(whose, scenario.setup, None)?;
            return Ok(Self::Server(server, address));
        }
        let mut wanted = Wanted {
            setup: scenario.setup,
            ..Wanted::default()
        };
        if let Load::FirstByte { rtt, fast_open } = scenario.load {
            let link = LinkConfig {
                delay: Duration::from_millis(rtt) / 2,
                ..LinkConfig::default()
            };
            wanted.fast_open = fast_open;
            wanted.link = Some(Between {
                up: link,
                down: link,
                seed: 1,
            });
        }
        let side = around.side(whose, &wanted)?;
        if let Load::FirstByte { rtt, .. } = scenario.load {
            eprintln!(
                "  connect + auth at {rtt} ms ({whose:?}): {:.1} ms",
                side.connect_ms
            );
        }
        Ok(Self::Pair(Box::new(side)))
    }

    fn measure(
        &self,
        around: &Surroundings,
        scenario: &Scenario,
        arguments: &Arguments,
    ) -> Result<Sample> {
        let span = Duration::from_secs_f64(arguments.seconds);
        let side = match self {
            Self::Pair(side) => side,
            Self::Server(server, address) => {
                let Load::Connects { at_once } = scenario.load else {
                    bail!("a server alone");
                };
                let seconds = arguments.seconds;
                return crowd::connects(around, server, address, at_once, seconds);
            }
        };
        let before = (side.server.cpu_seconds()?, side.client.cpu_seconds()?);
        let mut outcome = match scenario.load {
            Load::Bulk { way, streams } => {
                load::bulk(side.tcp, way, arguments.mebibytes << 20, streams)?
            }
            Load::PingPong { streams } => load::ping_pong(side.tcp, streams, span)?,
            Load::Requests { at_once } => load::requests(side.tcp, at_once, span)?,
            Load::Udp { size, window } => load::udp(side.udp, size, window, span)?,
            Load::FirstByte { rtt, .. } => {
                let count = (span.as_millis() as u64 * 2 / rtt).clamp(3, 20);
                load::first_bytes(side.tcp, count)?
            }
            Load::Connects { .. } => bail!("needs a server alone"),
        };
        let after = (side.server.cpu_seconds()?, side.client.cpu_seconds()?);
        let seconds = outcome.elapsed.as_secs_f64();
        let count = outcome.operations as f64;
        // Per unit of CPU, and per unit of rate.
        let (per, of) = match scenario.load {
            Load::Bulk { .. } => (count / 1_073_741_824.0, count * 8.0 / 1e9),
            _ => (count / 1e6, count),
        };
        Ok(Sample {
            rate: of / seconds,
            server: (after.0 - before.0) / per,
            client: (after.1 - before.1) / per,
            p50: outcome.quantile(0.5),
            p99: outcome.quantile(0.99),
            lost: outcome.lost,
            server_mib: side.server.resident()? as f64 / 1_048_576.0,
            client_mib: side.client.resident()? as f64 / 1_048_576.0,
            others: 0.0,
        })
    }
}

fn compare_idle(
    around: &Surroundings,
    used: bool,
    arguments: &Arguments,
    progress: &mut Progress,
    missed: &mut Vec<String>,
) -> Result<(String, Value)> {
    let name = idle_name(used, arguments);
    let mut line = format!("{name}:");
    let mut value = json!({"name": name});
    for whose in around.sides() {
        progress.step(&format!("{name} ({whose:?})"));
        let setup = Setup::default();
        let span = idle_span(arguments);
        let idle = crowd::idle(around, *whose, setup, arguments.idle, used, span)?;
        let bar = crowd::memory_bar(used);
        let who = whose.name();
        let _ = write!(line, " {who} {idle};");
        value[who] = idle.json();
        if *whose == Whose::Ours {
            let _ = write!(line, " (bars {bar} and {})", crowd::CPU_BAR);
            if idle.kibibytes > bar {
                missed.push(format!("{name}: {:.1} KiB > {bar}", idle.kibibytes));
            }
            if idle.percent > crowd::CPU_BAR {
                missed.push(format!(
                    "{name}: {:.2} % > {}",
                    idle.percent,
                    crowd::CPU_BAR
                ));
            }
        }
    }
    Ok((line, value))
}

/// The same of our server with its own settings; nobody judges that.
fn idle_as_shipped(
    around: &Surroundings,
    used: bool,
    arguments: &Arguments,
    progress: &mut Progress,
) -> Result<(String, Value)> {
    let name = format!("{}, as `hy2 server` ships", idle_name(used, arguments));
    progress.step(&name);
    let setup = Setup {
        shipped: true,
        ..Setup::default()
    };
    let span = idle_span(arguments);
    let idle = crowd::idle(around, Whose::Ours, setup, arguments.idle, used, span)?;
    let line =
        format!("{name} (a thread for each core, heap in ordinary pages; no bar): hy2 {idle};");
    Ok((line, json!({"name": name, "hy2": idle.json()})))
}

fn idle_name(used: bool, arguments: &Arguments) -> String {
    let state = if used { "after use" } else { "never used" };
    format!("14 {} idle connections, {state}", arguments.idle)
}

fn idle_span(arguments: &Arguments) -> Duration {
    Duration::from_secs(if arguments.quick { 3 } else { 30 })
}

fn write(
    out: &Path,
    machine: &Value,
    rows: &[Row],
    other: &[(String, Value)],
    missed: &[String],
) -> Result<()> {
    fs::create_dir_all(out)?;
    let json = json!({
        "machine": machine,
        "scenarios": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "other": other.iter().map(|(_, value)| value).collect::<Vec<_>>(),
        "below_bar": missed,
    });
    fs::write(out.join("results.json"), by_line(&json))?;
    let mut text = String::from(
        "# hy2 and the reference, side by side\n\nWritten by `make bench-compare`. Medians of runs \
         that alternate; a ratio is the median of the ratios pair by pair. CPU ratio: the \
         reference's over ours. Rate ratio: ours over the reference's.\n\n",
    );
    let others: Vec<f64> = rows.iter().flat_map(Row::others).collect();
    let disturbed = others.iter().filter(|others| **others > machine::OTHERS);
    text += &machine::notes(&machine::caveats(machine), disturbed.count(), others.len());
    let _ = writeln!(text, "```json\n{machine:#}\n```\n\n{HEAD}");
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
    }
    text.push('\n');
    for (line, _) in other {
        let _ = writeln!(text, "- {line}");
    }
    for missed in missed {
        let _ = writeln!(text, "- below its bar: {missed}");
    }
    if rows.iter().any(|row| row.reference.is_some()) {
        text.push_str("\n![ratios](ratios.svg)\n");
        fs::write(out.join("ratios.svg"), plot::ratios(rows))?;
    }
    text.push_str("\n![bulk](bulk.svg)\n");
    fs::write(out.join("bulk.svg"), plot::bulk(rows))?;
    fs::write(out.join("results.md"), text)?;
    println!("written to {}", out.display());
    Ok(())
}

/// Keeps this process, origin and load, off the first core for as long as it lives.
struct Elsewhere {
    cores: usize,
}

impl Elsewhere {
    fn go() -> Result<Self> {
        let cores = thread::available_parallelism()?.get();
        if cores < 2 {
            bail!("a server on a core of its own needs two cores");
        }
        bind(&format!("1-{}", cores - 1))?;
        Ok(Self { cores })
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // Worst case, the rest is measured on fewer cores, and slower.
        let _ = bind(&format!("0-{}", self.cores - 1));
    }
}

fn bind(cores: &str) -> Result<()> {
    let id = process::id().to_string();
    let output = Command::new("taskset")
        .args(["-a", "-p", "-c", cores, &id])
        .output()
        .context("taskset (util-linux)")?;
    if !output.status.success() {
        bail!("taskset: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
