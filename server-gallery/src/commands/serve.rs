//! `serve`: the server until a signal ends it. SIGHUP reads the configuration again.
//!
//! A client takes three file descriptors: its connection, and both ends of the one from the door to the broker. So the process
//! takes as many as it may have before it begins.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{ServeArgs, write_line};
use crate::config::{BrokerConfig, ServeConfig};
use crate::serve::{self, Ready};

/// File descriptors beside those of the broker's clients: connections that have said nothing yet, HTTP, the gallery's files.
const DESCRIPTORS_BESIDE: u64 = 1024;

pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let read = move || {
        let (raw, problems) = args.clone().raw();
        raw.validate(problems)
    };
    let config = read()?;
    take_descriptors(&config);
    let (reload, reloads) = watch::channel(config);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let stop = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            // A second signal ends the process at once, for those who cannot wait for the drain.
            tokio::spawn(async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                std::process::exit(1);
            });
        };
        let mut hang_up = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hang_up.recv().await.is_some() {
                match read() {
                    Ok(config) => drop(reload.send_replace(config)),
                    Err(problems) => tracing::error!("the configuration stays as it was: {problems}"),
                }
            }
        });
        serve::run(reloads, say_ready, stop).await.map_err(anyhow::Error::from)
    });
    // Connections of the embedded broker end with the process; nobody waits for them.
    runtime.shutdown_background();
    served
}

/// Raises the limit on file descriptors as far as the system lets us, and warns where that is not far enough.
fn take_descriptors(config: &ServeConfig) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if let Err(error) = &raised {
        tracing::warn!(%error, "the limit on file descriptors stays as it is");
    }
    let limit = if raised.is_ok() { maximum } else { current };
    let clients = match &config.broker {
        BrokerConfig::Embedded { clients_max, .. } => u64::from(*clients_max),
        BrokerConfig::External { .. } => 0,
    };
    let needed = 3 * clients + DESCRIPTORS_BESIDE;
    // No limit at all is none to warn of.
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "too few file descriptors for clients_max: raise the hard limit (ulimit -Hn, LimitNOFILE), or lower clients_max"
        );
    }
}

fn say_ready(ready: Ready) {
    let Ready { mqtt, mqtts, http, space, size } = ready;
    let http = http.map_or_else(String::new, |address| format!(" http={address}"));
    let mqtts = mqtts.map_or_else(String::new, |address| format!(" mqtts={address}"));
    // Who started the server may have closed its output; it serves all the same.
    if let Err(error) = write_line(format_args!("ready mqtt={mqtt}{http} space={space} size={size}{mqtts}")) {
        tracing::warn!(%error, "could not say that the server is ready");
    }
}
