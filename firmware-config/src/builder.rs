//! The scripts and files that an image is made with, which are part of the program: `firmware-config/image`, and of `tools/arm` what
//! they rely on. They are laid out in a folder as they are in the repository, and run there.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::output::complain;

macro_rules! files {
    ($($path:literal),* $(,)?) => { [$(($path, include_str!(concat!("../../", $path)))),*] };
}

/// By their paths in the repository; a test holds that none is missing.
#[rustfmt::skip]
const FILES: [(&str, &str); 36] = files![
    "tools/arm/debian.sh",
    "tools/arm/qemu-system.sh",
    "firmware-config/image/README.txt",
    "firmware-config/image/assemble.sh",
    "firmware-config/image/base.sh",
    "firmware-config/image/config.txt",
    "firmware-config/image/init",
    "firmware-config/image/modules",
    "firmware-config/image/device/etc/fstab",
    "firmware-config/image/device/etc/group",
    "firmware-config/image/device/etc/hostname",
    "firmware-config/image/device/etc/hosts",
    "firmware-config/image/device/etc/nsswitch.conf",
    "firmware-config/image/device/etc/passwd",
    "firmware-config/image/device/etc/shadow",
    "firmware-config/image/device/usr/lib/glimpse/configure",
    "firmware-config/image/device/usr/lib/glimpse/health",
    "firmware-config/image/device/usr/lib/glimpse/report",
    "firmware-config/image/device/usr/lib/glimpse/slot",
    "firmware-config/image/device/usr/lib/glimpse/update",
    "firmware-config/image/device/usr/lib/modprobe.d/glimpse.conf",
    "firmware-config/image/device/usr/lib/sysctl.d/50-glimpse.conf",
    "firmware-config/image/device/usr/lib/systemd/journald.conf.d/glimpse.conf",
    "firmware-config/image/device/usr/lib/systemd/network/80-glimpse.network",
    "firmware-config/image/device/usr/lib/systemd/resolved.conf.d/glimpse.conf",
    "firmware-config/image/device/usr/lib/systemd/system.conf.d/glimpse.conf",
    "firmware-config/image/device/usr/lib/systemd/system/emergency.service.d/image.conf",
    "firmware-config/image/device/usr/lib/systemd/system/glimpse-configure.service",
    "firmware-config/image/device/usr/lib/systemd/system/glimpse-edge.service.d/image.conf",
    "firmware-config/image/device/usr/lib/systemd/system/glimpse-health.service",
    "firmware-config/image/device/usr/lib/systemd/system/glimpse-ssh.service",
    "firmware-config/image/device/usr/lib/systemd/system/glimpse-update.service",
    "firmware-config/image/device/usr/lib/systemd/system/glimpse-wifi.service",
    "firmware-config/image/device/usr/lib/tmpfiles.d/glimpse.conf",
    "firmware-config/image/device/usr/lib/udev/rules.d/60-glimpse.rules",
    "firmware-config/image/tools.sh",
];

/// Those that are run.
const PROGRAMS: [&str; 4] = ["qemu-system.sh", "assemble.sh", "base.sh", "tools.sh"];

/// A folder with the scripts, which goes with this.
#[derive(Debug)]
pub struct Builder {
    folder: tempfile::TempDir,
}

impl Builder {
    /// Lays them out.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        for (path, content) in FILES {
            let file = folder.path().join(path);
            let of = file.parent().context("a file is in a folder")?;
            std::fs::create_dir_all(of)
                .and_then(|()| std::fs::write(&file, content))
                .with_context(|| format!("cannot write {path}"))?;
            #[cfg(unix)]
            if PROGRAMS.iter().any(|program| path.ends_with(program)) {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(&file, mode).with_context(|| format!("cannot write {path}"))?;
            }
        }
        Ok(Self { folder })
    }

    /// Runs a script of this path in the repository, passes on what it says, and gives back the path that it prints.
    ///
    /// # Errors
    /// Why the script cannot do its work here.
    pub fn run(
        &self,
        path: &str,
        arguments: &[&OsStr],
        variables: &[(&str, &OsStr)],
    ) -> anyhow::Result<PathBuf> {
        let mut command = Command::new("bash");
        command.arg(self.folder.path().join(path)).args(arguments).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut script = command.spawn().context("cannot run bash, which images are made with")?;
        if let Some(said) = script.stderr.take() {
            BufReader::new(said).lines().map_while(Result::ok).for_each(|line| complain(&line));
        }
        let output = script.wait_with_output().context("cannot wait for bash")?;
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match output.status.code() {
            Some(0) => Ok(PathBuf::from(printed)),
            Some(3) => bail!("{printed}"),
            _ => bail!("{} failed ({})", Path::new(path).display(), output.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn collect(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, root, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn every_file_of_the_folder_is_part_of_the_program() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found =
            BTreeSet::from(["tools/arm/debian.sh".to_owned(), "tools/arm/qemu-system.sh".to_owned()]);
        collect(&root.join("firmware-config/image"), root, &mut found);
        assert_eq!(FILES.iter().map(|(path, _)| (*path).to_owned()).collect::<BTreeSet<_>>(), found);
    }

    #[test]
    fn a_script_that_cannot_do_its_work_says_why() {
        let builder = Builder::new().unwrap();
        let error = builder.run("firmware-config/image/base.sh", &[OsStr::new("toaster")], &[]).unwrap_err();
        assert!(error.to_string().contains("base.sh failed"), "{error}");
    }
}
