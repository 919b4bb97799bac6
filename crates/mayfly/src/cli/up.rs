//! `mayfly up`: a trust domain on one machine.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, Context, output};
use crate::{
    broker::{Broker, StartOptions},
    clock,
    config::Config,
};

/// Arguments of `mayfly up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// The configuration file [default: built in, with a profile for the user who starts this]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The trust domain [default: the configuration's, else example.org]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// Serve although the log is older than its sentinel: what was revoked since may be valid again
    #[arg(long)]
    accept_restored: bool,
    /// Keep the sentinel here rather than in the data directory, so that a restored backup shows
    #[arg(long, value_name = "DIR")]
    sentinel_dir: Option<PathBuf>,
}

pub(crate) async fn up(context: &Context, args: &UpArgs) -> Result<(), CliError> {
    // Whatever is written is the owner's alone; sockets are opened to others by name.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // The allocator asks for huge pages, and a broker that has nothing to do would hold tens of megabytes of
    // them. Nothing is started from here that could inherit this.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages stay allowed");
    }
    let uid = rustix::process::geteuid().as_raw();
    // Paths are told to workloads, whose working directory is another one.
    let data_dir = std::path::absolute(&context.data_dir)
        .map_err(CliError::io("cannot find the working directory"))?;
    let domain = args.trust_domain.as_deref();
    let config = match &args.config {
        Some(file) => Config::read(file, &data_dir, domain, uid)?,
        None => Config::built_in(&data_dir, domain.unwrap_or("example.org"), uid)?,
    };
    let on = |kind| signal(kind).map_err(CliError::io("cannot listen for signals"));
    let (mut terminate, mut interrupt) =
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let trust_domain = config.trust_domain.clone();
    let options = StartOptions {
        data_dir: data_dir.clone(),
        accept_restored: args.accept_restored,
        sentinel_dir: args.sentinel_dir.clone(),
    };
    let broker = Broker::start(config, options, clock::system()).await?;
    for notice in broker.notices() {
        tracing::warn!("{notice}");
    }
    let (socket, data_dir) = (broker.workload_socket().display(), data_dir.display());
    output::line(&format!("ready {trust_domain} unix://{socket} data-dir={data_dir}"));
    let broken = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = broker.broken() => true,
    };
    tracing::info!("stopping");
    broker.stop().await;
    if broken {
        let why = "the driver has stopped, see above; start again, nothing acknowledged is lost";
        return Err(CliError::Other(why.to_owned()));
    }
    Ok(())
}
