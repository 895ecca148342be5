//! `check`: everything that could keep `serve` from serving, at once.

use glimpse_embedder::SpaceBundle;

use super::{ServeArgs, write_line};
use crate::config::{BrokerConfig, Problems, ServeConfig};
use crate::gallery;
use crate::index::Index;
use crate::store;

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
            problems.push(format!("{:#}", anyhow::Error::from(error)));
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
            Err(error) => problems.push(format!("{:#}", anyhow::Error::from(error))),
        }
    }
    if let Some(dir) = store {
        let loaded = store::load(&dir).and_then(|snapshot| match &bundle {
            Some(bundle) => {
                snapshot.meta.check_space(&dir, bundle.space, bundle.dimension).map(|()| snapshot)
            }
            None => Ok(snapshot),
        });
        match loaded {
            Ok(snapshot) => found.push(format!(
                "gallery  {}: {} images, generation {}",
                dir.display(),
                snapshot.images.len(),
                snapshot.meta.generation
            )),
            Err(error) => problems.push(error.to_string()),
        }
        if let Some(Err(error)) = bundle.as_ref().map(gallery::codebook) {
            problems.push(error.to_string());
        }
        // Reads only: what `serve` would make is not made here.
        if let Ok(images) = store::load_images(&dir) {
            found.push(match Index::open(&dir.join(gallery::INDEX), images, None) {
                Ok(index) => format!("search   {}", index.vectors().describe()),
                Err(error) => format!("search   serve makes a new index: {:#}", anyhow::Error::from(error)),
            });
        }
    }
    if let Some(ServeConfig { gallery, broker, http, .. }) = config {
        found.push(match &http {
            Some(http) => format!("console  http://{}", http.listen),
            None => "console  none".to_owned(),
        });
        if let Some(Err(error)) = http.map(|http| http.check(&gallery)) {
            problems.push(error.to_string());
        }
        found.push(match broker {
            BrokerConfig::Embedded { listen, clients_max } => {
                format!("broker   embedded, on {listen}, {clients_max} clients at most")
            }
            BrokerConfig::External { host, port, client_id } => {
                format!("broker   {host}:{port}, as {client_id} (not connected to: check only reads)")
            }
        });
    }
    for line in found {
        write_line(format_args!("{line}"))?;
    }
    if problems.is_empty() { write_line(format_args!("ok")) } else { Err(Problems(problems).into()) }
}
