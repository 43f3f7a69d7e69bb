//! The example, one example of every error, and arbitrary text.

use super::*;
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../../docs/examples/guest.toml");
const MINIMAL: &str = "[vm]\nname = \"web\"\nmemory_mib = 64\nkernel = \"vmlinux\"\n";

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(text, Path::new("/etc/understudy/guest.toml"))
}

#[test]
fn the_example_shows_every_default() {
    let example = read(EXAMPLE).unwrap();
    assert_eq!(
        example.vm.kernel,
        Path::new("/etc/understudy/images/vmlinux")
    );
    assert_eq!(
        example.network.as_ref().unwrap().announce,
        [Ipv4Addr::new(10, 0, 0, 5)]
    );

    let needed = "[vm]\nname=\"web\"\nmemory_mib=256\nkernel=\"images/vmlinux\"\n\
        initramfs=\"images/initramfs.cpio\"\n[network]\ntap=\"tap0\"\nannounce=[\"10.0.0.5\"]\n\
        [channel]\naddress=\"10.1.0.1:7071\"\n[arbiter]\nurl=\"https://10.0.0.9:7070\"\n\
        [log]\ndir=\"log\"\n[tls]\ncertificate=\"tls/host.pem\"\nkey=\"tls/host.key\"\n\
        authority=\"tls/ca.pem\"\nprimary=[\"host-a\",\"host-b\"]\nbackup=[\"host-a\",\"host-b\"]\n\
        arbiter=[\"arbiter\"]\n[fence]\ncommand=[\"/usr/local/sbin/fence\",\"ipmi\"]\n";
    let by_default = read(needed).unwrap();
    assert_eq!(
        Config {
            vm: Vm {
                mac: by_default.vm.mac,
                ..example.vm
            },
            ..example
        },
        by_default
    );
}

#[test]
fn the_arbiter_may_be_an_etcd_cluster() {
    let url = "etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/understudy";
    let private = "[tls]\nplain_text = true\n";
    let config = read(&format!("{MINIMAL}[arbiter]\nurl = \"{url}\"\n{private}")).unwrap();
    assert_eq!(config.arbiter().unwrap(), url);
}

#[test]
fn a_minimal_file_is_enough_to_run() {
    let config = read(MINIMAL).unwrap();
    assert_eq!(config.console, Console::Stdio);
    assert_eq!(config.vm.mac[..3], [0x52, 0x54, 0x00]);
    for error in [
        config.channel().unwrap_err(),
        config.arbiter().unwrap_err(),
        config.log().unwrap_err(),
    ] {
        assert!(
            error
                .to_string()
                .contains("which this command needs; add ["),
            "{error}"
        );
    }
}

/// What to replace in [`MINIMAL`], with what, and what the error then says.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "memory_mib = 64",
        "memory_mib = 9999",
        "guest.toml:3: vm.memory_mib = 9999 is out of range; give a whole number from 32 to 3072 MiB",
    ),
    (
        "memory_mib = 64",
        "memory_mib = \"64\"",
        "guest.toml:3: vm.memory_mib = \"64\" is text, not a whole number; give a whole number",
    ),
    (
        "memory_mib = 64",
        "memory_mib = -1",
        "vm.memory_mib = -1 is out of range",
    ),
    (
        "memory_mib = 64",
        "memroy_mib = 64",
        "vm.memory_mib is missing; give a whole number",
    ),
    (
        "memory_mib = 64",
        "memory_mib = 64\ncmdlnie = \"quiet\"",
        "guest.toml:4: there is no key vm.cmdlnie; did you mean cmdline?",
    ),
    (
        "memory_mib = 64",
        "memory_mib = 64\nbogus = 1",
        "there is no key vm.bogus; known here: name, memory_mib, kernel, initramfs, cmdline, mac",
    ),
    (
        "\"web\"",
        "\"a b\"",
        "vm.name = \"a b\" is no name: the vm name has ' ' at byte 1; use letters",
    ),
    (
        "\"vmlinux\"",
        "\"\"",
        "vm.kernel = \"\" is empty; give a path",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\nmac = \"01:00:00:00:00:01\"",
        "vm.mac = \"01:00:00:00:00:01\" is a group address",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\nmac = \"52:54:0:0:0:1\"",
        "is no MAC address; write six bytes in hexadecimal",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\ncmdline = \"a\\nb\"",
        "contains '\\n'",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\ncmdline = \"a\\u0000b\"",
        "contains a zero byte",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[netwrok]\ntap = \"t\"",
        "guest.toml:5: there is no section [netwrok]; did you mean network?",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[network]\ntap = \"t/0\"",
        "network.tap = \"t/0\" is no interface name",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[network]\ntap = \"t\"\nannounce = [\"10.0.0\"]",
        "has \"10.0.0\", which is no IPv4 address",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[network]\ntap = \"t\"\nannounce = \"10.0.0.1\"",
        "is text, not a list",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[console]\nmode = \"tty\"",
        "console.mode = \"tty\" is not known; choose one of \"stdio\", \"socket\", \"file\", \"none\"",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[console]\nmode = \"socket\"",
        "console.path is missing; give the path of the console's socket",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[console]\npath = \"x\"",
        "console.path = \"x\" has no meaning in this mode",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[channel]\naddress = \"10.1.0.1\"",
        "channel.address = \"10.1.0.1\" is no IP address with a port",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[channel]\naddress = \"127.0.0.1:1\"\nsuspect_ms = 20",
        "channel.suspect_ms = 20 is out of range; give a whole number from 60 to 600000 ms, at least three heartbeats",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[arbiter]\nurl = \"ftp://x\"",
        "arbiter.url = \"ftp://x\" has scheme \"ftp\", which is not spoken",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[arbiter]",
        "arbiter.url is missing; give the arbiter's address",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[channel]\naddress = \"10.1.0.1:1\"",
        "channel.address = \"10.1.0.1:1\" is not on this machine, and nothing protects it; add [tls]",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[arbiter]\nurl = \"http://10.1.0.1\"",
        "arbiter.url = \"http://10.1.0.1\" is not on this machine, and is spoken to in plain text; write https",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[arbiter]\nurl = \"https://10.1.0.1\"\n[tls]\nplain_text = true",
        "arbiter.url = \"https://10.1.0.1\" is in TLS, and there is no certificate",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[tls]\nplain_text = \"yes\"",
        "tls.plain_text = \"yes\" is text, not true or false",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[fence]\ncommand = [\"fence\"]",
        "fence.command = [\"fence\"] does not begin with an absolute path",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[tls]",
        "tls.certificate is missing; give certificate, key and authority, or plain_text = true",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[tls]\nplain_text = true\nkey = \"k\"",
        "there is no key tls.key; did you mean key?",
    ),
    (
        "\"vmlinux\"",
        "\"k\"\n[tls]\ncertificate = \"c\"\nkey = \"k\"\nauthority = \"a\"\nprimary = [\"*\"]",
        "tls.primary = [\"*\"] has \"*\", which is no name of a certificate",
    ),
    (
        "[vm]",
        "name = \"x\"\n[vm]",
        "guest.toml:1: the key name stands outside any section",
    ),
    (
        "[vm]",
        "vm = 1\n[network]",
        "vm is a whole number, not a section; write it as a section: [vm]",
    ),
    ("[vm]", "[vm", "guest.toml:1: this is not TOML:"),
];

#[test]
fn errors_name_file_line_key_value_and_remedy() {
    for &(from, to, expected) in MISTAKES {
        assert!(MINIMAL.contains(from));
        let error = read(&MINIMAL.replace(from, to)).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "for {to:?}\nexpected {expected}\nfound    {error}"
        );
    }
}

#[test]
fn load_says_what_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.toml");
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
    std::fs::write(&path, MINIMAL).unwrap();
    let error = load(&path).unwrap_err();
    assert_eq!(error.key.as_deref(), Some("vm.kernel"), "{error}");
    std::fs::write(directory.path().join("vmlinux"), "x").unwrap();
    assert_eq!(
        load(&path).unwrap().vm.kernel,
        directory.path().join("vmlinux")
    );
    std::fs::write(&path, vec![b'#'; FILE_BYTES_MAX + 1]).unwrap();
    assert!(
        load(&path)
            .unwrap_err()
            .to_string()
            .contains("is longer than")
    );
    std::fs::write(&path, b"\xff").unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("not UTF-8"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        let _ = read(&text);
    }

    #[test]
    fn any_value_of_any_key_is_read_or_refused(
        at in 0..64usize,
        value in prop_oneof![
            any::<i64>().prop_map(|n| n.to_string()),
            any::<f64>().prop_map(|n| format!("{n:?}")),
            "[a-zA-Z0-9:/.]{0,20}".prop_map(|text| format!("{text:?}")),
            Just("[]".to_owned()), Just("[[1]]".to_owned()), Just("{ a = 1 }".to_owned()),
            Just("true".to_owned()), Just("1979-05-27".to_owned()),
            any::<String>(),
        ],
    ) {
        let keys: Vec<_> = EXAMPLE.lines().filter(|line| line.contains(" = ")).collect();
        let line = keys[at % keys.len()];
        let key = line.split(" = ").next().unwrap();
        if let Err(error) = read(&EXAMPLE.replace(line, &format!("{key} = {value}"))) {
            prop_assert!(!error.remedy.is_empty() && !error.problem.is_empty());
        }
    }

    #[test]
    fn a_damaged_example_is_read_or_refused(at in 0..EXAMPLE.len(), byte in 0x09u8..0x7f) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        bytes[at] = byte;
        let _ = read(&String::from_utf8(bytes).unwrap());
    }
}
