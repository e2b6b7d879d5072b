//! Which address a node tells others to dial. Pure: the interfaces are an argument.
//!
//! In this order: `advertise`; a specific `bind` address; the first address of `interface` or within `advertise_cidr`; the
//! first address that is neither loopback nor link-local, VirtualBox's NAT address (10.0.2.15 on every guest) last; loopback
//! when there is nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::config::NodeSettings;

/// The choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// An IP address or a DNS name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What may be wrong with it, in words.
    pub doubt: Option<String>,
}

/// VirtualBox gives this address to the NAT interface of every guest.
const NAT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));

/// Chooses; `port` is the one that is really listened on.
///
/// # Errors
/// In words, naming the key: nothing fits.
pub fn choose(
    node: &NodeSettings,
    port: u16,
    interfaces: &[(String, IpAddr)],
) -> Result<Advertised, String> {
    if let Some(told) = &node.advertise {
        return parse(told, port);
    }
    let fixed = node.bind.ip();
    if !fixed.is_unspecified() && node.interface.is_none() && node.advertise_cidr.is_none() {
        return Ok(plain(fixed, port));
    }
    let mut fitting: Vec<IpAddr> = Vec::new();
    for (name, ip) in interfaces {
        let named = node.interface.as_ref().is_none_or(|wanted| wanted == name);
        let within = match &node.advertise_cidr {
            None => true,
            Some(cidr) => contains(cidr, *ip)?,
        };
        if named && within {
            fitting.push(*ip);
        }
    }
    let asked = node.interface.is_some() || node.advertise_cidr.is_some();
    if asked && fitting.is_empty() {
        let have: Vec<String> = interfaces
            .iter()
            .map(|(n, ip)| format!("{n} {ip}"))
            .collect();
        return Err(format!(
            "no address fits node.interface = {:?}, node.advertise_cidr = {:?}; this machine has {}",
            node.interface.as_deref().unwrap_or(""),
            node.advertise_cidr.as_deref().unwrap_or(""),
            have.join(", ")
        ));
    }
    if !asked {
        fitting.retain(|ip| !ip.is_loopback() && !is_link_local(*ip));
    }
    // IPv4 first: it is what the article's nodes use, and what most networks route.
    fitting.sort_by_key(|ip| (*ip == NAT, ip.is_ipv6()));
    match fitting.first() {
        Some(ip) => Ok(plain(*ip, port)),
        None => Ok(plain(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
    }
}

/// What others are told to ask the admin API by that listens there: a URL with TLS, an address without.
pub fn admin(listens: SocketAddr, tls: bool, advertised: &Advertised) -> String {
    let (ip, port) = (listens.ip(), listens.port());
    let host = match ip.is_unspecified() {
        true => advertised.host.clone(),
        false => ip.to_string(),
    };
    let host = match host.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host,
    };
    let scheme = if tls { "https://" } else { "" };
    format!("{scheme}{host}:{port}")
}

/// Every name and address under which people may ask the admin API.
pub fn names(
    hostname: &str,
    listed: &[String],
    listens: SocketAddr,
    advertised: &Advertised,
    interfaces: &[(String, IpAddr)],
) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), hostname.to_owned()];
    names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
    names.extend(listed.iter().cloned());
    names.push(advertised.host.clone());
    let ip = listens.ip();
    match ip.is_unspecified() {
        false => names.push(ip.to_string()),
        true => names.extend(interfaces.iter().map(|(_, ip)| ip.to_string())),
    }
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

fn plain(ip: IpAddr, port: u16) -> Advertised {
    let doubt = (ip == NAT).then(|| {
        "10.0.2.15 is the NAT address of every VirtualBox guest, which no other machine can dial: \
         set node.interface, node.advertise or node.advertise_cidr"
            .to_owned()
    });
    Advertised {
        host: ip.to_string(),
        port,
        doubt,
    }
}

fn parse(told: &str, port: u16) -> Result<Advertised, String> {
    let bad = || {
        format!(
            "node.advertise = {told:?} must be a host or host:port, such as \"10.0.0.7\", \"[fd00::7]:22222\" or \"node-a.lan\""
        )
    };
    if let Ok(address) = told.parse::<SocketAddr>() {
        return Ok(plain(address.ip(), address.port()));
    }
    if let Ok(ip) = told.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(plain(ip, port));
    }
    let (host, port) = match told.rsplit_once(':') {
        Some((host, digits)) => (host, digits.parse().map_err(|_| bad())?),
        None => (told, port),
    };
    let is_dns = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if host.is_empty() || !host.chars().all(is_dns) {
        return Err(bad());
    }
    Ok(Advertised {
        host: host.to_owned(),
        port,
        doubt: None,
    })
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0) == 0xfe80,
    }
}

/// Whether `ip` is within `network/prefix`.
fn contains(cidr: &str, ip: IpAddr) -> Result<bool, String> {
    let bad =
        || format!("node.advertise_cidr = {cidr:?} must be a network, such as \"192.168.56.0/24\"");
    let (network, prefix) = cidr.split_once('/').ok_or_else(bad)?;
    let network: IpAddr = network.parse().map_err(|_| bad())?;
    let prefix: u32 = prefix.parse().map_err(|_| bad())?;
    let (a, b, width) = match (network, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return Ok(false),
    };
    if prefix > width {
        return Err(bad());
    }
    let shift = width - prefix;
    Ok(a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Told, load};

    fn node(pairs: &[(&str, &str)]) -> NodeSettings {
        let values = pairs.iter().map(|(k, v)| {
            (
                (*k).to_owned(),
                toml::Value::String((*v).to_owned()),
                "--set".to_owned(),
            )
        });
        let told = Told {
            file: Some("/dev/null".into()),
            values: values.collect(),
        };
        load(&told, std::iter::empty()).unwrap().node
    }

    fn guest() -> Vec<(String, IpAddr)> {
        [
            ("lo", "127.0.0.1"),
            ("eth0", "10.0.2.15"),
            ("eth1", "192.168.56.11"),
            ("eth1", "fe80::1"),
        ]
        .map(|(n, ip)| (n.to_owned(), ip.parse().unwrap()))
        .to_vec()
    }

    #[test]
    fn the_choice_is_made_in_the_documented_order() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], "192.168.56.11"),
            (&[("node.advertise", "node-a.lan")], "node-a.lan"),
            (&[("node.advertise", "[fd00::7]:9")], "fd00::7"),
            (&[("node.bind", "127.0.0.1:1")], "127.0.0.1"),
            (&[("node.interface", "eth0")], "10.0.2.15"),
            (
                &[("node.advertise_cidr", "192.168.0.0/16")],
                "192.168.56.11",
            ),
        ];
        for (pairs, host) in cases {
            assert_eq!(
                choose(&node(pairs), 22222, &guest()).unwrap().host,
                *host,
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn the_nat_address_is_the_last_choice_and_doubted() {
        let only = &guest()[..2];
        let chosen = choose(&node(&[]), 1, only).unwrap();
        assert!(chosen.doubt.unwrap().contains("VirtualBox"));
        assert_eq!(choose(&node(&[]), 1, &only[..1]).unwrap().host, "127.0.0.1");
    }

    #[test]
    fn the_admin_api_is_named_so_that_others_can_ask_it() {
        let advertised = choose(&node(&[]), 22222, &guest()).unwrap();
        for (listens, tls, told) in [
            ("127.0.0.1:22223", false, "127.0.0.1:22223"),
            ("0.0.0.0:22223", true, "https://192.168.56.11:22223"),
            ("[fd00::7]:22223", true, "https://[fd00::7]:22223"),
        ] {
            assert_eq!(admin(listens.parse().unwrap(), tls, &advertised), told);
        }
        let listed = ["node-a.example.org".to_owned()];
        let named = |listens: &str| {
            let listens = listens.parse().unwrap();
            names("node-a", &listed, listens, &advertised, &guest())
        };
        let everywhere = named("0.0.0.0:22223");
        for name in [
            "localhost",
            "127.0.0.1",
            "node-a",
            "node-a.example.org",
            "10.0.2.15",
        ] {
            assert!(everywhere.iter().any(|n| n == name), "{name}");
        }
        assert!(
            !named("192.168.56.11:22223")
                .iter()
                .any(|n| n == "10.0.2.15")
        );
    }

    #[test]
    fn what_does_not_fit_is_said_in_words() {
        for (key, value) in [
            ("node.interface", "eth9"),
            ("node.advertise_cidr", "10.0.0.0/33"),
            ("node.advertise", "a b"),
        ] {
            let err = choose(&node(&[(key, value)]), 1, &guest()).unwrap_err();
            assert!(err.contains(key) && err.contains(value), "{err}");
        }
    }
}
