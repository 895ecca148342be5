//! `serve`: the server until a signal ends it. SIGHUP reads the configuration again.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{ServeArgs, write_line};
use crate::serve::{self, Ready};

pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let read = move || {
        let (raw, problems) = args.clone().raw();
        raw.validate(problems)
    };
    let (reload, reloads) = watch::channel(read()?);
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

fn say_ready(ready: Ready) {
    let Ready { mqtt, mqtts, http, space, size } = ready;
    let http = http.map_or_else(String::new, |address| format!(" http={address}"));
    let mqtts = mqtts.map_or_else(String::new, |address| format!(" mqtts={address}"));
    // Who started the server may have closed its output; it serves all the same.
    if let Err(error) = write_line(format_args!("ready mqtt={mqtt}{http} space={space} size={size}{mqtts}")) {
        tracing::warn!(%error, "could not say that the server is ready");
    }
}
