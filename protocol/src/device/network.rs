//! What is the image's to do: the board that a device is on, its network, and the group that it is in.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;
use std::path::PathBuf;
use std::string::{String, ToString as _};
use std::vec::Vec;

use super::ValueError;
use crate::DeviceId;

/// A kind of board; `glimpse-firmware` has what is known of each (`firmware-config/boards`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Board {
    /// Raspberry Pi 3, in any of its models.
    RaspberryPi3,
    /// Raspberry Pi 4.
    RaspberryPi4,
    /// Raspberry Pi 5.
    RaspberryPi5,
    /// Raspberry Pi Zero 2 W.
    RaspberryPiZero2W,
    /// Whatever boots by UEFI with 64 bits.
    GenericUefi,
    /// The board that QEMU emulates.
    QemuVirt,
}

impl Board {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RaspberryPi3,
        Self::RaspberryPi4,
        Self::RaspberryPi5,
        Self::RaspberryPiZero2W,
        Self::GenericUefi,
        Self::QemuVirt,
    ];

    /// Their names, in the same order.
    pub const NAMES: [&'static str; 6] = [
        "raspberry-pi-3",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "raspberry-pi-zero-2-w",
        "generic-uefi",
        "qemu-virt",
    ];

    /// As `device.toml` has it.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().zip(Self::NAMES).find(|(board, _)| *board == self).map_or("", |(_, name)| name)
    }
}

impl FromStr for Board {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let found = Self::ALL.into_iter().find(|board| board.name() == text);
        found.ok_or(ValueError::Board)
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The group that a device is in, for `glimpse-gallery models push --to`: written as a device's name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupName(DeviceId);

impl GroupName {
    /// The name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for GroupName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        DeviceId::new(text).map(Self).map_err(|_| ValueError::Group)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A host's name: labels of letters, digits and `-`, with dots in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str, is_label_alone: bool) -> Option<Self> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let labels = text.split('.').count();
        let is_name = text.len() <= 253 && text.split('.').all(is_label) && !(is_label_alone && labels > 1);
        is_name.then(|| Self(text.to_string()))
    }
}

/// The name that a device gives itself: one label.
///
/// # Errors
/// [`ValueError::HostName`].
pub fn hostname(text: &str) -> Result<HostName, ValueError> {
    HostName::parse(text, true).ok_or(ValueError::HostName)
}

/// A time server: a name or an address.
///
/// # Errors
/// [`ValueError::TimeServer`].
pub fn time_server(text: &str) -> Result<HostName, ValueError> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(HostName(address.to_string())),
        Err(_) => HostName::parse(text, false).ok_or(ValueError::TimeServer),
    }
}

/// The name of a wireless network.
///
/// # Errors
/// [`ValueError::Ssid`].
pub fn ssid(text: &str) -> Result<String, ValueError> {
    let is_ssid = (1..=32).contains(&text.len()) && !text.chars().any(char::is_control);
    if is_ssid { Ok(text.to_string()) } else { Err(ValueError::Ssid) }
}

/// The country whose rules a radio keeps, by its two letters (ISO 3166-1).
///
/// # Errors
/// [`ValueError::Country`].
pub fn country(text: &str) -> Result<String, ValueError> {
    let is_country = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase());
    if is_country { Ok(text.to_string()) } else { Err(ValueError::Country) }
}

/// An address of a device, and how many of its bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The device's address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits are the network's.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `other` is reached without a gateway.
    pub fn has(&self, other: IpAddr) -> bool {
        self.address.is_ipv4() == other.is_ipv4() && self.host_bits(self.address).1 == self.host_bits(other).1
    }

    /// The bits of the host, and those of the network.
    fn host_bits(&self, address: IpAddr) -> (u128, u128) {
        let (bits, width) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let host = u32::from(width - self.prefix.min(width));
        let mask = 1_u128.checked_shl(host).map_or(u128::MAX, |bit| bit - 1);
        (bits & mask, bits & !mask)
    }
}

impl FromStr for Subnet {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (address, prefix) = text.split_once('/').ok_or(ValueError::Subnet)?;
        let address: IpAddr = address.parse().map_err(|_| ValueError::Subnet)?;
        let prefix: u8 = prefix.parse().map_err(|_| ValueError::Subnet)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        if !(1..=width).contains(&prefix) {
            return Err(ValueError::Subnet);
        }
        let subnet = Self { address, prefix };
        let host = subnet.host_bits(address).0;
        // The first of an IPv4 network names the network, the last is everybody; two hosts of a wire need neither.
        let is_everybody = address.is_ipv4() && host == (1_u128 << (width - prefix)) - 1;
        let is_nobodys = prefix + 1 < width && (host == 0 || is_everybody);
        if is_nobodys || !is_of_a_host(address) {
            return Err(ValueError::HostAddress);
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn is_of_a_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast)
}

/// The address of a gateway or of a name server.
///
/// # Errors
/// [`ValueError::Address`].
pub fn address(text: &str) -> Result<IpAddr, ValueError> {
    let address: Option<IpAddr> = text.parse().ok();
    address.filter(|address| !address.is_multicast() && !address.is_unspecified()).ok_or(ValueError::Address)
}

/// `[network]`: for the image that the device starts from. The device's program takes no notice of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// `hostname`: the device's name in its network.
    pub hostname: Option<HostName>,
    /// `wifi_ssid`: the wireless network that it joins.
    pub wifi_ssid: Option<String>,
    /// `wifi_password_file`: its password; `None`: an open network.
    pub wifi_password_file: Option<PathBuf>,
    /// `wifi_country`: whose rules its radio keeps.
    pub wifi_country: Option<String>,
    /// `address`: its own; `None`: by DHCP.
    pub address: Option<Subnet>,
    /// `gateway`: what leads to other networks.
    pub gateway: Option<IpAddr>,
    /// `dns`: who is asked for names; empty: whom DHCP names.
    pub dns: Vec<IpAddr>,
    /// `ntp`: who is asked for the time; empty: the system's own choice.
    pub ntp: Vec<HostName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boards_have_names() {
        for (board, name) in Board::ALL.into_iter().zip(Board::NAMES) {
            assert_eq!((name.parse(), board.to_string().as_str()), (Ok(board), name));
        }
        assert_eq!("raspberry-pi-2".parse::<Board>(), Err(ValueError::Board));
    }

    #[test]
    fn subnets_have_an_address_of_a_host() {
        for text in
            ["192.168.1.50/24", "10.0.0.1/8", "10.0.0.0/31", "10.0.0.1/32", "fd00::5/64", "fe80::1/10"]
        {
            assert_eq!(text.parse::<Subnet>().map(|it| it.to_string()), Ok(text.to_string()));
        }
        for (text, error) in [
            ("", ValueError::Subnet),
            ("192.168.1.50", ValueError::Subnet),
            ("192.168.1.50/0", ValueError::Subnet),
            ("192.168.1.50/33", ValueError::Subnet),
            ("192.168.1/24", ValueError::Subnet),
            ("fd00::5/129", ValueError::Subnet),
            ("192.168.1.0/24", ValueError::HostAddress),
            ("192.168.1.255/24", ValueError::HostAddress),
            ("127.0.0.1/8", ValueError::HostAddress),
            ("224.0.0.1/4", ValueError::HostAddress),
            ("fd00::/64", ValueError::HostAddress),
        ] {
            assert_eq!(text.parse::<Subnet>(), Err(error), "{text}");
        }
        let subnet: Subnet = "192.168.1.50/24".parse().unwrap();
        assert!(subnet.has("192.168.1.1".parse().unwrap()));
        assert!(!subnet.has("192.168.2.1".parse().unwrap()) && !subnet.has("fd00::1".parse().unwrap()));
        let subnet: Subnet = "fd00::5/64".parse().unwrap();
        assert!(subnet.has("fd00::1".parse().unwrap()) && !subnet.has("fd01::1".parse().unwrap()));
    }

    #[test]
    fn names_of_hosts_networks_and_countries_are_bounded() {
        assert!(["door-1", "a", "A1"].iter().all(|text| hostname(text).is_ok()));
        assert!(["", "a.b", "-a", "a-", "a_b", "\u{e9}"].iter().all(|text| hostname(text).is_err()));
        assert!(["pool.ntp.org", "10.0.0.1", "fd00::1", "ntp"].iter().all(|text| time_server(text).is_ok()));
        assert!(["", "a..b", "a b", "ntp://a", "a:123"].iter().all(|text| time_server(text).is_err()));
        assert!(["home", "two words", "caf\u{e9}"].iter().all(|text| ssid(text).is_ok()));
        assert!(["", "a\nb"].iter().all(|text| ssid(text).is_err()) && ssid(&"x".repeat(33)).is_err());
        assert!(country("CH").is_ok() && ["ch", "CHE", "", "C1"].iter().all(|text| country(text).is_err()));
        assert!(address("10.0.0.1").is_ok() && address("0.0.0.0").is_err() && address("dns").is_err());
    }
}
