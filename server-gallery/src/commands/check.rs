//! `check`: everything that could keep `serve` from serving, at once.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use glimpse_embedder::SpaceBundle;

use super::{ServeArgs, write_line};
#[cfg(feature = "embedded-broker")]
use crate::access::Registry;
use crate::access::{file, tls};
use crate::config::{BrokerConfig, ClientTls, Problems, ServeConfig};
use crate::gallery;
use crate::index::Index;
use crate::store::{Committed, Reader};
use crate::told::told;

pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let (raw, problems) = args.raw();
    // What names a bundle and a gallery is looked at even where another setting is wrong.
    let (bundle, store) = (raw.bundle.clone(), raw.gallery.clone());
    let (config, mut problems) = match raw.validate(problems) {
        Ok(config) => (Some(config), Vec::new()),
        Err(Problems(problems)) => (None, problems),
    };
    let mut found = Vec::new();
    let bundle = bundle.and_then(|path| match SpaceBundle::load(&path) {
        Ok(bundle) => Some(bundle),
        Err(error) => {
            problems.push(told(&error.into()));
            None
        }
    });
    if let Some(bundle) = &bundle {
        match bundle.verify() {
            Ok(()) => found.push(format!(
                "bundle   {}: {}, {} dimensions, space {}",
                bundle.dir.display(),
                bundle.name,
                bundle.dimension,
                bundle.space
            )),
            Err(error) => problems.push(told(&error.into())),
        }
    }
    if let Some(dir) = store {
        let loaded = Reader::open(&dir).and_then(|reader| reader.now()).and_then(|now| {
            if let Some(bundle) = &bundle {
                now.meta().check_space(&dir, bundle.space, bundle.dimension)?;
            }
            now.each(|_, _| true).map(|()| now)
        });
        if let Some(Err(error)) = bundle.as_ref().map(gallery::codebook) {
            problems.push(error.to_string());
        }
        match loaded {
            Ok(now) => {
                let (images, generation) = (now.len(), now.meta().generation);
                found.push(format!("gallery  {}: {images} images, generation {generation}", dir.display()));
                found.push(index_of(&dir, &now));
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    if let Some(config) = config {
        found.push(match &config.http {
            Some(http) => format!("console  http://{}{}", http.listen, listening(http.listen, &mut problems)),
            None => "console  none".to_owned(),
        });
        if let Some(Err(error)) = config.http.as_ref().map(|http| http.check(&config.access)) {
            problems.push(error.to_string());
        }
        check_broker(&config, &mut found, &mut problems);
    }
    for line in found {
        write_line(format_args!("{line}"))?;
    }
    if problems.is_empty() { write_line(format_args!("ok")) } else { Err(Problems(problems).into()) }
}

/// Reads only: what `serve` would make is not made here.
fn index_of(dir: &Path, now: &Committed) -> String {
    let index = Index::open(&dir.join(gallery::INDEX), None);
    let changed = index.as_ref().ok().map(|index| now.changed_since(&index.state(), gallery::CHANGES_MAX));
    match (index, changed) {
        (Ok(index), Some(Ok(Some(changed)))) => {
            let changes = if changed.is_empty() {
                String::new()
            } else {
                format!(", and {} changes since", changed.len())
            };
            format!("search   {}{changes}", index.vectors().describe())
        }
        (Err(error), _) => format!("search   serve makes a new index: {}", told(&error.into())),
        _ => "search   serve makes a new index: the gallery has changed too much".to_owned(),
    }
}

/// What to say beside an address that `serve` shall listen on. One in use is no problem: the server itself may be running.
fn listening(address: SocketAddr, problems: &mut Vec<String>) -> &'static str {
    match TcpListener::bind(address) {
        Ok(_) => "",
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            " (in use: unless this very server is running, choose another port)"
        }
        Err(error) => {
            problems.push(format!("cannot listen on {address}: {error}"));
            ""
        }
    }
}

/// The broker, who may connect to it, and the files of TLS.
fn check_broker(config: &ServeConfig, found: &mut Vec<String>, problems: &mut Vec<String>) {
    match &config.broker {
        BrokerConfig::Embedded { listen, clients_max, security } => {
            found.push(format!(
                "broker   embedded, on {listen}{}, {clients_max} clients at most",
                listening(*listen, problems)
            ));
            if let (Some(listen), Some(files)) = (security.listen_tls, &security.tls) {
                match tls::check(files) {
                    Ok(()) => found.push(format!(
                        "tls      on {listen}{}, by {}",
                        listening(listen, problems),
                        files.certificate.display()
                    )),
                    Err(error) => problems.push(error.to_string()),
                }
            }
            let registry = file::load(&config.access);
            #[cfg(feature = "embedded-broker")]
            if let Ok(registry) = &registry
                && let Err(error) = crate::broker::Broker::check_devices(
                    *listen,
                    security.listen_tls,
                    registry.as_ref().map_or(0, Registry::len),
                )
            {
                problems.push(error.to_string());
            }
            match registry {
                Ok(None) => found
                    .push("devices  none are registered: this machine only, and anybody on it".to_owned()),
                Ok(Some(registry)) => {
                    found.push(format!("devices  {} in {}", registry.len(), config.access.display()));
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        BrokerConfig::External { host, port, client_id, security } => {
            found
                .push(format!("broker   {host}:{port}, as {client_id} (not connected to: check only reads)"));
            if let Some((_, password_file)) = &security.login
                && let Err(error) = file::read_secret(password_file)
            {
                problems.push(error.to_string());
            }
            if let Some(ClientTls { ca, identity }) = &security.tls {
                let identity =
                    identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
                match tls::client_config(ca, identity) {
                    Ok(_) => found.push(format!("tls      a broker that {} vouches for", ca.display())),
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
    }
}
