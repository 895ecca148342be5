//! Mosquitto: a broker that is not ours, with passwords, permissions and TLS, as somebody would run it who has one already.
//!
//! `make test` brings it (`tools/mosquitto/fetch.sh`); without it the test that needs it says that it is left out, and under
//! continuous integration that is a failure.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::authority::Authority;
use crate::server::end_of;
use crate::workspace;

/// It starts in a tenth of a second.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A broker with files in a folder of its own. Dropping it kills the process.
pub struct Mosquitto {
    programs: PathBuf,
    folder: PathBuf,
    process: Option<Child>,
    port: u16,
    /// Who vouches for it.
    pub authority: PathBuf,
}

impl Mosquitto {
    /// Finds the programs. `None`, with a line on standard error, where `test` has to be left out.
    ///
    /// # Panics
    /// Where they are missing under continuous integration (`CI=true`).
    pub fn find(test: &str) -> Option<PathBuf> {
        workspace::fetched(test, "mosquitto/bin", &["mosquitto", "mosquitto_passwd"], "mosquitto")
    }

    /// Starts a broker for these users, each with its password; a device may do what our own broker lets it do, and a user whose
    /// name begins with `gallery` what a server must.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn start(programs: PathBuf, folder: &Path, users: &[(&str, &str)]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let authority = Authority::new(folder, "ca")?;
        let identity = authority.server("broker")?;
        let [certificate, key] = identity.texts();
        // Nobody else takes a port that was just free, as a rule.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let file = |name: &str| folder.join(name).display().to_string();
        let mut acl = String::new();
        let mut passwords = String::new();
        for (user, password) in users {
            passwords += &format!("{user}:{password}\n");
            acl += &format!("user {user}\n");
            acl += &if user.starts_with("gallery") {
                "topic readwrite glimpse/v1/#\n\n".to_owned()
            } else {
                let own = format!("glimpse/v1/devices/{user}");
                format!(
                    "topic write {own}/query\ntopic write {own}/status\ntopic write {own}/fetch\ntopic read {own}/reply\ntopic read {own}/model\ntopic read glimpse/v1/gallery/status\n\n"
                )
            };
        }
        std::fs::write(folder.join("acl"), acl)?;
        std::fs::write(folder.join("passwords"), passwords)?;
        // Hashes them in place.
        let hashed =
            Command::new(programs.join("mosquitto_passwd")).arg("-U").arg(folder.join("passwords")).status();
        ensure!(hashed.context("cannot run mosquitto_passwd")?.success(), "mosquitto_passwd failed");
        let configuration = format!(
            "listener {port} 127.0.0.1\ncafile {}\ncertfile {certificate}\nkeyfile {key}\ntls_version tlsv1.3\n\
             allow_anonymous false\npassword_file {}\nacl_file {}\nset_tcp_nodelay true\npersistence true\n\
             persistence_location {}/\nautosave_interval 1\nautosave_on_changes true\nlog_dest stderr\n{}",
            authority.certificate.display(),
            file("passwords"),
            file("acl"),
            folder.display(),
            // As root it would become a user who cannot read these files.
            if is_root() { "user root\n" } else { "" },
        );
        std::fs::write(folder.join("mosquitto.conf"), configuration)?;
        let authority = authority.certificate;
        let mut broker = Self { programs, folder: folder.to_owned(), process: None, port, authority };
        broker.restart()?;
        Ok(broker)
    }

    /// `HOST:PORT`, by TLS.
    pub fn address(&self) -> String {
        format!("mqtts://127.0.0.1:{}", self.port)
    }

    /// Ends it at once, as a power cut does.
    ///
    /// # Errors
    /// Where it cannot be ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Starts it again, with what it has kept.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        let log = self.folder.join("mosquitto.log");
        let mut command = Command::new(self.programs.join("mosquitto"));
        command.arg("-c").arg(self.folder.join("mosquitto.conf")).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log)?);
        self.process = Some(command.spawn().context("cannot start mosquitto")?);
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            ensure!(started.elapsed() < START_TIMEOUT, "mosquitto does not listen{}", end_of(&log));
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.kill();
    }
}

fn is_root() -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
    }
    #[cfg(not(unix))]
    false
}
