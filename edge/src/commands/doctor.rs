//! `glimpse-edge doctor`: looks at all that a device needs, and says what to do about what is missing.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use glimpse_protocol::SpaceId;
use glimpse_protocol::device::Device;

use super::model_files;
use super::run::{self, RunArgs};
use crate::linux::camera::Wanted;
use crate::linux::credentials::Credentials;
use crate::linux::doctor::{self, Finding, files, network, system};
use crate::linux::host;
use crate::linux::mqtt::{Connection, Presence};
use crate::linux::time;
use crate::linux::update::Updating;
use crate::ports::Embedder as _;

/// Flags of `glimpse-edge doctor`: those of `run`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    run: RunArgs,
}

/// Looks; the status tells whether nothing failed.
///
/// # Errors
/// Output that cannot be written.
pub fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let json = args.run.json;
    let mut out = io::stdout().lock();
    let mut findings = Vec::new();
    let mut told = Ok(());
    examine(args.run, Path::new("/"), &mut |finding| {
        // Some take their time: people see each one when it is there.
        if !json && told.is_ok() {
            told = doctor::write_line(&mut out, &finding);
        }
        findings.push(finding);
    });
    told?;
    if json {
        doctor::write_json(&mut out, &findings)?;
    } else {
        doctor::write_summary(&mut out, &findings)?;
    }
    Ok(if doctor::has_failed(&findings) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// All checks, from what needs nothing to what needs everything; `root` is where the kernel tells of itself.
fn examine(args: RunArgs, root: &Path, tell: &mut dyn FnMut(Finding)) {
    let config = args.config.clone();
    let device = match run::configuration(args) {
        Ok(device) => {
            tell(configured(config.as_deref()));
            Some(device)
        }
        Err(error) => {
            let advice =
                "`glimpse-firmware check FILE` tells the same; `glimpse-firmware init` writes a new one";
            tell(Finding::failure("configuration", format!("{error:#}"), advice));
            None
        }
    };
    let is_tls = device.as_ref().is_some_and(|device| device.server.is_tls());
    tell(system::clock(SystemTime::now(), time::is_synchronised(), is_tls));
    tell(system::memory(root));
    tell(system::temperature(root));
    if let Some(device) = &device {
        examine_device(device, tell);
    }
}

fn configured(path: Option<&Path>) -> Finding {
    const CHECK: &str = "configuration";
    let named = path.map_or_else(|| "by flags".to_owned(), |path| path.display().to_string());
    let open = path.and_then(|path| files::is_open_to_all(CHECK, path));
    open.unwrap_or_else(|| Finding::ok(CHECK, format!("{named}: valid")))
}

fn examine_device(device: &Device, tell: &mut dyn FnMut(Finding)) {
    if let Some(cores) = &device.cores {
        tell(system::cores(cores));
    }
    if let Some(outbox) = &device.outbox {
        tell(system::folder("outbox", &outbox.folder, outbox.megabytes.into()));
    }
    if let Some(updates) = &device.updates {
        tell(system::folder("state", &updates.state, 0));
    }
    tell(files::camera(&device.camera, Wanted::of(device), device.sharpness_min));
    let lines = [
        ("led", &device.actions.led),
        ("led_unknown", &device.actions.led_unknown),
        ("button", &device.button),
    ];
    for (key, line) in lines {
        if let Some(line) = line {
            tell(files::line(key, line));
        }
    }
    if let Some(program) = &device.actions.exec {
        tell(files::exec(program));
    }
    let names = model_files(device);
    let (found, model) = files::model(&names);
    tell(found);
    if let Some(model) = &model {
        tell(files::codec(device, &names, model.dimension()));
    }
    let space = model.as_ref().map(crate::ports::Embedder::space);
    // Not needed any more, and large.
    drop(model);
    let (found, credentials) = files::credentials(device);
    tell(found);
    if let Some(credentials) = credentials {
        server(device, space, credentials).into_iter().for_each(&mut *tell);
    }
    if let Some(webhook) = &device.actions.webhook {
        tell(network::webhook(webhook));
    }
}

fn server(device: &Device, space: Option<SpaceId>, credentials: Credentials) -> Vec<Finding> {
    let name = device.name.clone().map_or_else(host::device_name, Ok);
    let (name, jitter) = match (name, host::jitter()) {
        (Ok(name), Ok(jitter)) => (name, jitter),
        (Err(error), _) | (_, Err(error)) => return vec![Finding::from_error("broker", &error)],
    };
    let connection = Connection {
        server: device.server.clone(),
        device: name,
        space: space.unwrap_or(SpaceId::from_bytes([0; 16])),
        expiry: device.timeout,
        keep_alive_s: device.keep_alive,
        // The status of a device that runs stays as it is.
        has_status: false,
        credentials,
        presence: Presence::default(),
        updating: Updating::default(),
    };
    network::server(connection, space, jitter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{Cli, Command};
    use crate::linux::doctor::Status;
    use clap::Parser as _;
    use std::net::TcpListener;

    fn findings(args: &[&str], root: &Path) -> Vec<Finding> {
        let cli = Cli::try_parse_from(["glimpse-edge", "doctor"].iter().chain(args)).unwrap();
        let Command::Doctor(args) = cli.command else { panic!("{cli:?}") };
        let mut findings = Vec::new();
        examine(args.run, root, &mut |finding| findings.push(finding));
        findings
    }

    fn status(findings: &[Finding], check: &str) -> Option<Status> {
        findings.iter().find(|finding| finding.check == check).map(|finding| finding.status)
    }

    #[test]
    fn a_configuration_that_is_none_is_told_with_the_state_of_the_machine() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("device.toml");
        std::fs::write(&path, "servr = 'a'\n").unwrap();
        let findings = findings(&["--config", path.to_str().unwrap()], root.path());
        let checks: Vec<&str> = findings.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, ["configuration", "clock", "memory", "temperature"]);
        assert_eq!(findings[0].status, Status::Failure);
        assert!(findings[0].message.contains("line 1, column 1: servr"), "{findings:?}");
    }

    #[test]
    fn every_part_of_a_device_is_looked_at_and_one_that_fails_hides_no_other() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let text = format!(
            "server = '{nobody}'\ncamera = 'folder:gone'\nmodel = 'gone.onnx'\noutbox = 'file'\nexec = 'gone'\n\
             webhook = 'http://{nobody}/x'\nled = 'gpiochip65535:1'\nbutton = 'gpiochip65535:2'\n"
        );
        std::fs::write(root.path().join("device.toml"), text).unwrap();
        let found = findings(&["--config", &path("device.toml")], root.path());
        for check in ["outbox", "camera", "led", "button", "exec", "model", "broker"] {
            assert_eq!(status(&found, check), Some(Status::Failure), "{check}: {found:?}");
        }
        assert_eq!(status(&found, "configuration"), Some(Status::Ok));
        assert_eq!(status(&found, "credentials"), Some(Status::Ok));
        assert_eq!(status(&found, "webhook"), Some(Status::Warning));
        for finding in found.iter().filter(|finding| finding.status == Status::Failure) {
            let tells = finding.advice.is_some() || finding.message.contains(": ");
            assert!(tells, "what is to be done? {finding:?}");
        }
    }

    #[test]
    fn the_demos_network_passes_its_self_test() {
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
        let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/photos/queries");
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let camera = format!("folder:{}", photos.display());
        let args =
            ["--bundle", bundle.to_str().unwrap(), "--camera", &camera, "--server", &nobody, "--codec", "pq"];
        let found = findings(&args, Path::new("/"));
        for check in ["camera", "model", "codec", "credentials"] {
            assert_eq!(status(&found, check), Some(Status::Ok), "{check}: {found:?}");
        }
        assert!(doctor::has_failed(&found), "there is no server");
    }
}
