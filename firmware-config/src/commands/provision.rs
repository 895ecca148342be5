//! `glimpse-firmware ca`, `provision` and `revoke`: each device has credentials of its own, which the server knows.
//!
//! A device's bundle is a folder that only its owner can enter, with everything that goes onto the device: `device.toml`, its
//! credentials, the authority of its server, and the networks. It is made beside its place and moved there once the server
//! knows the device, so that a folder that is there is whole, and a fleet that was broken off goes on where it was.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use glimpse_protocol::device::{Board, CameraSource, Device, GroupName, HostName, Subnet, hostname};
use glimpse_protocol::{Codec, DeviceId};

use super::check::{Look, device_of};
use crate::authority::Authority;
use crate::boards;
use crate::files::{private_folder, write_new};
use crate::output::{complain, say, shown};
use crate::template::device_toml;

/// What can be done with an authority.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Makes an authority that signs devices' certificates: ca.pem, and ca.key, which whoever has it can sign with
    Init {
        /// Its folder
        #[arg(default_value = "ca", value_name = "DIR")]
        folder: PathBuf,
    },
}

/// How a device proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Credentials {
    /// By a certificate, over TLS
    Certificate,
    /// By a password
    Password,
}

/// Where the server keeps who may connect.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Folder of the gallery, for `glimpse-gallery devices`
    #[arg(long, value_name = "DIR")]
    pub gallery: Option<PathBuf>,
    /// That program
    #[arg(long, value_name = "PROGRAM", default_value = "glimpse-gallery")]
    pub gallery_program: PathBuf,
}

/// Flags of `glimpse-firmware provision`.
#[derive(Debug, Args)]
#[command(after_help = "\
fleet.csv has a header with `device`, and any of `group`, `board`, `camera`, `hostname` and `address`; what is empty is as in \
--config.

Examples:
  glimpse-firmware ca init
  glimpse-firmware provision door-1 --config device.toml --gallery gallery
  glimpse-firmware provision --fleet fleet.csv --config device.toml --gallery gallery")]
pub struct ProvisionArgs {
    /// Devices
    #[arg(value_name = "NAME", required_unless_present = "fleet", conflicts_with = "fleet")]
    pub devices: Vec<DeviceId>,
    /// A table of devices (CSV)
    #[arg(long, value_name = "FILE")]
    pub fleet: Option<PathBuf>,
    /// What all of them have in common
    #[arg(long, value_name = "FILE", default_value = "device.toml")]
    pub config: PathBuf,
    /// Where the folders of the devices are made
    #[arg(long, value_name = "DIR", default_value = "devices")]
    pub out: PathBuf,
    /// How they prove themselves
    #[arg(long, value_enum, default_value_t = Credentials::Certificate)]
    pub credentials: Credentials,
    /// Folder of the authority that signs their certificates
    #[arg(long, value_name = "DIR", default_value = "ca")]
    pub ca: PathBuf,
    /// For how long the server takes the credentials, as 90d [default: until they are revoked]
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
    /// The server
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of `glimpse-firmware revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Devices
    #[arg(required = true, value_name = "NAME")]
    pub devices: Vec<DeviceId>,
    /// The server
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Makes an authority.
///
/// # Errors
/// One that is there, or cannot be written.
pub fn ca(command: &CaCommand) -> anyhow::Result<ExitCode> {
    let CaCommand::Init { folder } = command;
    let certificate = Authority::init(folder)?;
    say(&format!(
        "made {}: give it to the server, `tls_client_ca` in its configuration; keep ca.key beside it to yourself\n",
        shown(&certificate.display().to_string())
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Lets the server know devices no more.
///
/// # Errors
/// The first that the server's command refuses.
pub fn revoke(args: &RevokeArgs) -> anyhow::Result<ExitCode> {
    for device in &args.devices {
        let said = args.server.devices("revoke", &[], device)?;
        say(&format!("{}\n", shown(said.trim())))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl ServerArgs {
    /// Runs `glimpse-gallery devices COMMAND FLAGS --gallery DIR -- NAME`, and gives back what it printed.
    fn devices(&self, command: &str, flags: &[&OsStr], device: &DeviceId) -> anyhow::Result<String> {
        let gallery = self.gallery.as_deref().context("the server has to know: give --gallery DIR")?;
        let program = self.gallery_program.display();
        let output = Command::new(&self.gallery_program)
            .args(["devices", command])
            .args(flags)
            .arg("--gallery")
            .arg(gallery)
            .args(["--", device.as_str()])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {program}: give --gallery-program PROGRAM"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} devices {command} {device}: {}", shown(complaint.trim()));
        String::from_utf8(output.stdout).with_context(|| format!("{program} printed what is no text"))
    }
}

/// What a device has of its own.
#[derive(Debug)]
struct Member {
    name: DeviceId,
    group: Option<GroupName>,
    board: Option<Board>,
    camera: Option<CameraSource>,
    hostname: Option<HostName>,
    address: Option<Subnet>,
}

impl Member {
    fn named(name: DeviceId) -> Self {
        Self { name, group: None, board: None, camera: None, hostname: None, address: None }
    }
}

/// Makes the folders of devices, each with credentials that the server knows.
///
/// # Errors
/// What is wrong with the configuration or the fleet, before anything is made; then the first device that could not be made.
pub fn provision(args: &ProvisionArgs) -> anyhow::Result<ExitCode> {
    let common = match device_of(&args.config, Look::Copied) {
        Ok(device) => device,
        Err(wrong) => {
            wrong.tell(&args.config);
            bail!("{} is what the devices have in common, and has to be good first", args.config.display());
        }
    };
    ensure!(
        args.credentials == Credentials::Password || common.server.is_tls(),
        "certificates are for TLS: write server = \"mqtts://HOST:PORT\" and ca = \"FILE\" into {}, or give --credentials password",
        args.config.display()
    );
    ensure!(
        args.server.gallery.is_some(),
        "the server has to know the devices: give --gallery DIR, the folder of its gallery"
    );
    let members = match &args.fleet {
        Some(file) => fleet(file)?,
        None => args.devices.iter().cloned().map(Member::named).collect(),
    };
    for (place, member) in members.iter().enumerate() {
        let twice = members.iter().take(place).any(|other| other.name == member.name);
        ensure!(
            !twice,
            "{} is there twice: two devices with one name push each other off the server",
            member.name
        );
    }
    let authority =
        (args.credentials == Credentials::Certificate).then(|| Authority::open(&args.ca)).transpose()?;
    private_folder(&args.out)?;
    let (mut made, mut kept) = (0, 0);
    for member in &members {
        let folder = args.out.join(member.name.as_str());
        if folder.exists() {
            complain(&format!("{} is there already, and stays", folder.display()));
            kept += 1;
            continue;
        }
        seal(&folder, member, common.clone(), authority.as_ref(), args)
            .with_context(|| format!("{} was not made; made before it: {made}", member.name))?;
        say(&format!("{}\n", shown(&folder.display().to_string())))?;
        made += 1;
    }
    complain(&format!(
        "{made} made, {kept} there already: each folder holds secrets, and goes onto its device alone"
    ));
    Ok(ExitCode::SUCCESS)
}

/// Makes the folder of one device.
fn seal(
    folder: &Path,
    member: &Member,
    mut device: Device,
    authority: Option<&Authority>,
    args: &ProvisionArgs,
) -> anyhow::Result<()> {
    let mut new = tempfile::Builder::new();
    #[cfg(unix)]
    new.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    let new = new.prefix(".new-").tempdir_in(&args.out).context("cannot make a folder")?;
    let inside = new.path();
    device.name = Some(member.name.clone());
    device.group = member.group.clone().or(device.group);
    device.board = member.board.or(device.board);
    device.camera = member.camera.clone().unwrap_or(device.camera);
    device.network.hostname = member.hostname.clone().or(device.network.hostname);
    device.network.address = member.address.or(device.network.address);
    if let Some(ca) = &device.security.ca {
        copy(ca, &inside.join("server-ca.pem"))?;
        device.security.ca = Some("server-ca.pem".into());
    }
    (device.security.identity, device.security.password_file) = (None, None);
    let group = device.group.as_ref().map(|group| group.as_str().to_owned());
    let mut flags: Vec<&OsStr> = Vec::new();
    if let Some(group) = &group {
        flags.extend([OsStr::new("--group"), OsStr::new(group)]);
    }
    if let Some(expires) = &args.expires {
        flags.extend([OsStr::new("--expires"), OsStr::new(expires)]);
    }
    bundle(&mut device, inside)?;
    let certificate = inside.join("device.pem");
    if let Some(authority) = authority {
        let identity = authority.sign(&member.name)?;
        write_new(&certificate, identity.certificate.as_bytes(), 0o600)?;
        write_new(&inside.join("device.key"), identity.key.as_bytes(), 0o600)?;
        device.security.identity = Some(("device.pem".into(), "device.key".into()));
        flags.extend([OsStr::new("--certificate"), certificate.as_os_str()]);
    } else {
        device.security.password_file = Some("device.password".into());
        flags.push(OsStr::new("--generate"));
    }
    let profile = device.board.map(boards::profile).transpose()?;
    let text = device_toml(&device, profile.as_ref().and_then(|profile| profile.pins.as_ref()))?;
    write_new(&inside.join("device.toml"), text.as_bytes(), 0o600)?;
    // As the device will read it; the password is its server's to make, below.
    let is_password = authority.is_none();
    if is_password {
        write_new(&inside.join("device.password"), b"", 0o600)?;
    }
    if let Err(wrong) = device_of(&inside.join("device.toml"), Look::Nowhere) {
        bail!("{}", wrong.problems);
    }
    let said = args.server.devices("add", &flags, &member.name)?;
    if is_password {
        std::fs::write(inside.join("device.password"), said).context("cannot write the password")?;
    }
    let inside = new.keep();
    std::fs::rename(&inside, folder).with_context(|| {
        format!("the server knows {}; its folder is {} and cannot be moved", member.name, inside.display())
    })
}

/// Copies the networks that a device runs, and names the copies.
fn bundle(device: &mut Device, inside: &Path) -> anyhow::Result<()> {
    let space = inside.join("space");
    if let Some(bundle) = &device.bundle {
        private_folder(&space)?;
        let mut names = vec!["space.toml"];
        names.extend(device.model.is_none().then_some("query.onnx"));
        names.extend(
            (device.codec == Codec::Pq && device.codebook.is_none()).then_some("codebook.safetensors"),
        );
        for name in names {
            copy(&bundle.join(name), &space.join(name))?;
        }
        device.bundle = Some("space".into());
    }
    for (file, name) in [(&mut device.model, "query.onnx"), (&mut device.codebook, "codebook.safetensors")] {
        if let Some(from) = file {
            private_folder(&space)?;
            copy(from, &space.join(name))?;
            *file = Some(Path::new("space").join(name));
        }
    }
    let webhook = device.actions.webhook.as_mut();
    for (file, name) in webhook
        .into_iter()
        .flat_map(|webhook| [(&mut webhook.token_file, "webhook.token"), (&mut webhook.ca, "webhook-ca.pem")])
        .chain([(&mut device.network.wifi_password_file, "wifi.password")])
    {
        if let Some(from) = file {
            copy(from, &inside.join(name))?;
            *file = Some(name.into());
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write_new(to, &content, 0o600)
}

/// The devices of a table.
fn fleet(file: &Path) -> anyhow::Result<Vec<Member>> {
    let name = file.display();
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(file)
        .with_context(|| format!("cannot read {name}"))?;
    let header = reader.headers().with_context(|| format!("cannot read {name}"))?.clone();
    let known = ["device", "group", "board", "camera", "hostname", "address"];
    if let Some(unknown) = header.iter().find(|column| !known.contains(column)) {
        bail!("{name}: line 1: {}: unknown column: the columns are {}", shown(unknown), known.join(", "));
    }
    ensure!(header.iter().any(|column| column == "device"), "{name}: line 1: there is no column `device`");
    let mut members = Vec::new();
    let mut problems = Vec::new();
    for row in reader.records() {
        let row = row.with_context(|| format!("cannot read {name}"))?;
        let line = row.position().map_or(0, csv::Position::line);
        let cell = |column: &str| {
            let place = header.iter().position(|other| other == column)?;
            row.get(place).filter(|cell| !cell.is_empty())
        };
        let mut wrong =
            |column: &str, error: String| problems.push(format!("{name}: line {line}: {column}: {error}"));
        let device = match cell("device").map(str::parse::<DeviceId>) {
            Some(Ok(device)) => Some(device),
            Some(Err(error)) => {
                wrong("device", error.to_string());
                None
            }
            None => {
                wrong("device", "missing".to_owned());
                None
            }
        };
        let group = parsed(cell("group")).unwrap_or_else(|error| (wrong("group", error), None).1);
        let board = parsed(cell("board")).unwrap_or_else(|error| (wrong("board", error), None).1);
        let camera = parsed(cell("camera")).unwrap_or_else(|error| (wrong("camera", error), None).1);
        let address = parsed(cell("address")).unwrap_or_else(|error| (wrong("address", error), None).1);
        let host = match cell("hostname").map(hostname).transpose() {
            Ok(host) => host,
            Err(error) => (wrong("hostname", error.to_string()), None).1,
        };
        members.extend(device.map(|name| Member { name, group, board, camera, hostname: host, address }));
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    ensure!(!members.is_empty(), "{name} names no device");
    Ok(members)
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(cell: Option<&str>) -> Result<Option<T>, String> {
    cell.map(str::parse).transpose().map_err(|error: T::Err| error.to_string())
}
