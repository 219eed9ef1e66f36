//! The menu, as one enum; one file per command. The composition roots (`up`, `server`, `agent`) are here too: only they may join rooms.

mod agent;
mod board;
mod completions;
mod demo;
mod doctor;
mod down;
mod hidden;
#[cfg(feature = "aws")]
mod iam;
mod image;
mod init;
mod keeper;
mod kubeconfig;
mod list;
mod logging;
mod pause;
mod plan;
mod progress;
mod resolve;
mod schema;
mod server;
mod session;
mod ssh;
mod state;
mod status;
mod terminal;
mod up;
mod validate;
mod world;

use crate::error::{Error, Kind, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// One blueprint, any provider: machines, load balancers, filesystems and a Kubernetes cluster, kept true from inside.
#[derive(Debug, Parser)]
#[command(name = "kprov", version, max_term_width = 100, after_help = "Start with: kprov init > shop.yaml && kprov up shop.yaml")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make what a blueprint says exist, and wait until it serves
    Up(up::Args),
    /// Show what `up` would do
    Plan(plan::Args),
    /// Take a cluster away and prove that nothing is left
    Down(down::Args),
    /// Show what is wanted, what is, and what it waits for
    Status(status::Args),
    /// List clusters
    List(list::Args),
    /// Print the administrator's kubeconfig
    Kubeconfig(kubeconfig::Args),
    /// Open a shell on a machine, or run a command there
    Ssh(ssh::Args),
    /// Say what this host lacks for the local provider and for kubectl
    Doctor(doctor::Args),
    /// Check a blueprint and everything it names; print every problem at once
    Validate(validate::Args),
    /// Print the blueprint's JSON Schema
    Schema,
    /// Print a commented starter blueprint
    Init(init::Args),
    /// Print shell completions
    Completions(completions::Args),
    /// Print the policies that a cloud's administrator gives to kprov
    #[cfg(feature = "aws")]
    Iam(iam::Args),
    /// Write kprov's own image as an OCI archive
    #[command(hide = true)]
    Image(image::Args),
    /// Run the control plane: store, API, scheduler, controllers, the infrastructure loop
    #[command(hide = true)]
    Server(server::Args),
    /// Run the node agent: kubelet, service proxy, DNS
    #[command(hide = true)]
    Agent(agent::Args),
    /// Ask this node's cluster DNS
    #[command(hide = true)]
    Resolve(resolve::Args),
    /// Serve the demo web application
    #[command(hide = true)]
    Demo(demo::Args),
}

pub fn main() -> ExitCode {
    let first = std::env::args_os().nth(1);
    if first.as_deref() == Some("pause".as_ref()) {
        return pause::run();
    }
    if first.as_deref() == Some("host".as_ref()) {
        return crate::bootstrap::host::main();
    }
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(code) = hidden::dispatch(&arguments) {
        return code;
    }
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            terminal::print_error(&error);
            if let Some(log) = logging::file() {
                terminal::talk(format_args!("  everything that happened: {}", log.display()));
            }
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => return runtime(2)?.block_on(up::run(&args)),
        Command::Plan(args) => return runtime(2)?.block_on(plan::run(&args)),
        Command::Down(args) => return runtime(2)?.block_on(down::run(&args)),
        Command::Status(args) => return runtime(2)?.block_on(status::run(&args)),
        Command::List(args) => return runtime(1)?.block_on(list::run(&args)),
        Command::Kubeconfig(args) => runtime(1)?.block_on(kubeconfig::run(&args))?,
        Command::Ssh(args) => return runtime(1)?.block_on(ssh::run(&args)),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Validate(args) => return validate::run(&args),
        Command::Schema => schema::run()?,
        Command::Init(args) => init::run(&args)?,
        Command::Completions(args) => completions::run(&args)?,
        #[cfg(feature = "aws")]
        Command::Iam(args) => return iam::run(&args),
        Command::Image(args) => image::run(&args)?,
        Command::Resolve(args) => resolve::run(&args)?,
        Command::Server(args) => {
            logging::to_stderr();
            runtime(2)?.block_on(server::run(&args))?;
        }
        Command::Agent(args) => {
            logging::to_stderr();
            runtime(2)?.block_on(agent::run(&args))?;
        }
        Command::Demo(args) => runtime(1)?.block_on(demo::run(args))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Few threads: an idle kprov must be small, and no command is bound by more.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Host, "could not start the runtime").because(error))
}

/// Cancelled by SIGTERM or SIGINT: what machines run stops in order when its supervisor says so.
fn until_terminated() -> Result<tokio_util::sync::CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| Error::new(Kind::Host, "could not handle signals").because(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let cancel = tokio_util::sync::CancellationToken::new();
    let cancelled = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(cancel)
}

/// The first Ctrl-C, SIGTERM or closing of the terminal cancels: start nothing new, finish what is in flight. The second ends the
/// process, which every step survives.
fn on_first_interrupt(cancel: &tokio_util::sync::CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| Error::new(Kind::Host, "could not handle signals").because(error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    // Under nohup a closed terminal means nothing.
    let mut hang_up = if ignores_hang_up() { None } else { Some(signal(SignalKind::hangup()).map_err(failed)?) };
    let cancelled = cancel.clone();
    tokio::spawn(async move {
        let closed = async {
            match &mut hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = closed => {}
        }
        cancelled.cancel();
        terminal::talk("stopping: nothing new is started; run the same command again to go on (Ctrl-C again ends it at once)");
        // A terminal that closes says so more than once: only the other two mean "at once".
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(i32::from(Kind::Interrupted.exit_code()));
    });
    Ok(())
}

/// Whoever started us wants us to outlive the terminal.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 << (nix::sys::signal::Signal::SIGHUP as u64 - 1) != 0)
}
