//! What runs a node on real machines: systemd's unit and what it is told, Vagrant, the package, containers.
//!
//! Tools that are not there skip their test, in words.

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::net::Net;
use support::{
    FAST, LONG, Process, TROUPE, clean_env, event, free_port, free_ports, inside, until,
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Whether this program is installed; says that the test is skipped when not.
fn has(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// Both outputs, as text.
fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// A service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        Self { socket, dir }
    }

    /// A node that tells this manager, with a watchdog of a second and a half.
    fn node(&self, registry: &str) -> (Process, u16) {
        let port = free_ports(2);
        let mut command = Command::new(TROUPE);
        let bind = format!("127.0.0.1:{port}");
        let admin = format!("127.0.0.1:{}", port + 1);
        command
            .args(["run", "--name", "herald", "--log-format", "json"])
            .args(["--registry", registry, "--bind", &bind, "--admin", &admin])
            .args(FAST);
        clean_env(&mut command);
        command
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .env("WATCHDOG_USEC", "1500000")
            .env_remove("WATCHDOG_PID");
        (Process::start(&mut command), port + 1)
    }

    /// The lines of the next datagram, if one comes within this.
    fn hear(&self, within: Duration) -> Option<Vec<String>> {
        let mut buffer = [0; 4096];
        self.socket.set_read_timeout(Some(within)).unwrap();
        let n = self.socket.recv(&mut buffer).ok()?;
        let text = std::str::from_utf8(&buffer[..n]).unwrap();
        Some(text.lines().map(str::to_owned).collect())
    }

    /// Everything that is told until a line fits, that one included.
    fn hear_until(&self, what: &str, fits: impl Fn(&str) -> bool) -> Vec<String> {
        let deadline = Instant::now() + LONG;
        let mut heard = Vec::new();
        while Instant::now() < deadline {
            heard.extend(self.hear(LONG).unwrap_or_default());
            if heard.iter().any(|line| fits(line)) {
                return heard;
            }
        }
        panic!("the service manager is not told {what}; it was told {heard:?}");
    }

    /// Everything that is told in this time.
    fn hear_for(&self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let mut heard = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return heard;
            }
            heard.extend(self.hear(left).unwrap_or_default());
        }
    }
}

/// An embedded registry in a process of its own, and its URL.
fn registry() -> (Process, String) {
    let listen = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(TROUPE);
    command.args(["registry", "serve", "--listen", &listen]);
    command.args(["--log-format", "json"]);
    clean_env(&mut command);
    let process = Process::start(&mut command);
    let serving = |line: &serde_json::Value| event(line, "registry.serving");
    process
        .lines
        .wait_from(0, "registry.serving", LONG, serving);
    (process, format!("http://{listen}"))
}

fn kill_actor(admin: u16, actor: &str, how: &str) {
    let api = format!("http://127.0.0.1:{admin}");
    let output = Command::new(TROUPE)
        .args(["--api", &api, "kill", actor, "--how", how])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", words(&output));
}

const FED: &str = "WATCHDOG=1";

#[test]
fn systemd_is_told_when_a_node_is_ready_that_it_lives_and_that_it_stops() {
    let manager = Manager::new();
    let (mut registry, url) = (None, format!("http://127.0.0.1:{}", free_port()));
    // Without a registry it lives, and is not ready.
    let (node, _) = manager.node(&url);
    let early = manager.hear_until(FED, |line| line == FED);
    assert!(!early.contains(&"READY=1".to_owned()), "{early:?}");
    drop(node);

    let url = registry.insert(self::registry()).1.clone();
    let (mut node, admin) = manager.node(&url);
    let heard = manager.hear_until("that it leads", |l| l.starts_with("STATUS=master under"));
    assert_eq!(
        heard.iter().filter(|l| *l == "READY=1").count(),
        1,
        "{heard:?}"
    );
    manager.hear_until(FED, |line| line == FED);

    // An actor that fails is the supervisor's business, not systemd's.
    for actor in ["worker", "discovery", "transport"] {
        kill_actor(admin, actor, "panic");
    }
    let meanwhile = manager.hear_for(Duration::from_secs(3));
    assert!(
        meanwhile.iter().filter(|l| *l == FED).count() >= 3,
        "{meanwhile:?}"
    );
    let is_false = |line: &String| line == "READY=1" || line == "STOPPING=1";
    assert!(!meanwhile.iter().any(is_false), "{meanwhile:?}");

    node.signal(Signal::TERM);
    let last = manager.hear_until("STOPPING=1", |line| line == "STOPPING=1");
    assert!(
        last.contains(&"STATUS=draining: SIGTERM".to_owned()),
        "{last:?}"
    );
    let more_time = "EXTEND_TIMEOUT_USEC=50000000".to_owned();
    assert!(last.contains(&more_time), "{last:?}");
    assert_eq!(node.wait(LONG), Some(0));
}

#[test]
fn the_watchdog_is_not_fed_by_a_node_that_is_stopped_or_whose_control_plane_hangs() {
    let manager = Manager::new();
    let (_registry, url) = registry();
    let (node, admin) = manager.node(&url);
    manager.hear_until("READY=1", |line| line == "READY=1");

    node.signal(Signal::STOP);
    // What was sent before.
    manager.hear_for(Duration::from_millis(200));
    let stopped = manager.hear_for(Duration::from_secs(2));
    assert_eq!(stopped, Vec::<String>::new(), "a stopped process");
    node.signal(Signal::CONT);
    manager.hear_until("life", |line| line == FED);

    kill_actor(admin, "registry", "hang");
    let not_fed = |line: &serde_json::Value| event(line, "watchdog.not_fed");
    node.lines.wait_from(0, "watchdog.not_fed", LONG, not_fed);
    manager.hear_for(Duration::from_millis(200));
    let hung = manager.hear_for(Duration::from_secs(2));
    assert!(!hung.contains(&FED.to_owned()), "{hung:?}");
}

/// The unit with this build's binary in it, in a directory of its own.
fn unit(dir: &Path) -> PathBuf {
    let text = std::fs::read_to_string(root().join("deploy/troupe.service")).unwrap();
    assert!(text.contains("ExecStart=/usr/bin/troupe run"), "{text}");
    let path = dir.join("troupe.service");
    std::fs::write(&path, text.replace("/usr/bin/troupe", TROUPE)).unwrap();
    path
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_calls_it_safe_enough() {
    if !has("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let unit = unit(dir.path());
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = words(&verify);
    assert!(
        verify.status.success() && !said.contains("troupe.service"),
        "{said}"
    );
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=20"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = words(&security);
    if said.contains("unrecognized option") {
        eprintln!("SKIPPED: this systemd-analyze cannot judge a unit offline");
        return;
    }
    // Of 100; the unit's comment says which protections exec jobs forbid.
    assert!(security.status.success(), "{said}");
}

/// Scripts of `deploy`, and the test command itself.
const SCRIPTS: [&str; 7] = [
    "deploy/provision-etcd.sh",
    "deploy/provision-node.sh",
    "deploy/deb/build",
    "deploy/deb/postinst",
    "deploy/deb/postrm",
    "deploy/deb/prerm",
    "tests/all",
];

#[test]
fn scripts_and_the_vagrantfile_are_well_formed() {
    for script in SCRIPTS {
        let path = root().join(script);
        let parsed = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(parsed.status.success(), "{script}: {}", words(&parsed));
    }
    if has("shellcheck") {
        let checked = Command::new("shellcheck")
            .args(SCRIPTS)
            .current_dir(root())
            .output()
            .unwrap();
        assert!(checked.status.success(), "{}", words(&checked));
    }
    if has("ruby") {
        let parsed = Command::new("ruby")
            .args(["-c", "Vagrantfile"])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(parsed.status.success(), "{}", words(&parsed));
    }
}

#[test]
fn vagrant_accepts_the_vagrantfile_for_each_provider() {
    if !has("vagrant") {
        return;
    }
    // VirtualBox itself is not needed to check its block: Vagrant only asks for its version.
    let dir = tempfile::tempdir().unwrap();
    let stand_in = dir.path().join("VBoxManage");
    std::fs::write(&stand_in, "#!/bin/sh\necho 6.1.50r161033\n").unwrap();
    make_executable(&stand_in);
    let path = format!(
        "{}:{}",
        std::env::var("PATH").unwrap(),
        dir.path().display()
    );
    // What Vagrant and the Vagrantfile leave behind goes to a copy.
    let copy = dir.path().join("copy");
    std::fs::create_dir_all(&copy).unwrap();
    std::fs::copy(root().join("Vagrantfile"), copy.join("Vagrantfile")).unwrap();
    std::os::unix::fs::symlink(root().join("deploy"), copy.join("deploy")).unwrap();
    for provider in ["virtualbox", "libvirt", "lxc"] {
        let checked = Command::new("vagrant")
            .arg("validate")
            .env("VAGRANT_DEFAULT_PROVIDER", provider)
            .env("VAGRANT_HOME", dir.path().join("home"))
            .env("VM_BINARY", TROUPE)
            .env("PATH", &path)
            .current_dir(&copy)
            .output()
            .unwrap();
        let said = words(&checked);
        if said.contains("could not be found") {
            eprintln!("SKIPPED: Vagrant's plugin for {provider} is not installed");
            continue;
        }
        assert!(checked.status.success(), "{provider}: {said}");
    }
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// What goes to a machine: the unit and the binary.
fn files_for_a_machine(dir: &Path) -> PathBuf {
    let files = dir.join("files");
    std::fs::create_dir_all(&files).unwrap();
    let unit = root().join("deploy/troupe.service");
    std::fs::copy(unit, files.join("troupe.service")).unwrap();
    std::fs::copy(TROUPE, files.join("troupe")).unwrap();
    files
}

const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[test]
fn provisioners_write_what_a_node_takes_and_write_it_again_without_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let files = files_for_a_machine(dir.path());
    let dest = dir.path().join("root");
    for _ in 0..2 {
        let node = Command::new(root().join("deploy/provision-node.sh"))
            .args(["node-a", "192.168.56.11"])
            .arg("http://192.168.56.10:2379,http://192.168.56.9:2379")
            .env("DESTDIR", &dest)
            .env("NODE_FILES", &files)
            .env("NODE_SECRET", SECRET)
            .output()
            .unwrap();
        assert!(node.status.success(), "{}", words(&node));
        let etcd = Command::new(root().join("deploy/provision-etcd.sh"))
            .arg("192.168.56.10")
            .env("DESTDIR", &dest)
            .output()
            .unwrap();
        assert!(etcd.status.success(), "{}", words(&etcd));
    }
    let config = dest.join("etc/troupe/config.toml");
    let shown = Command::new(TROUPE)
        .args(["--json", "config", "show", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let value = |key: &str| &shown[key]["value"];
    assert_eq!(value("node.advertise"), "192.168.56.11:22222");
    assert_eq!(value("node.name"), "node-a");
    let endpoints = ["http://192.168.56.10:2379", "http://192.168.56.9:2379"];
    assert_eq!(*value("registry.endpoints"), serde_json::json!(endpoints));
    assert_eq!(value("security.secret_file"), "/etc/troupe/secret");
    let secret = std::fs::metadata(dest.join("etc/troupe/secret")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);
    let etcd = std::fs::read_to_string(dest.join("etc/default/etcd")).unwrap();
    assert!(
        etcd.contains("ETCD_ADVERTISE_CLIENT_URLS=http://192.168.56.10:2379\n"),
        "{etcd}"
    );
}

/// Run in a network and a mount namespace of its own: a root that is this machine's with every change kept aside, in it the
/// provisioner (twice: it may run again at any time), then what the unit would start, as the user it would.
const MACHINE: &str = r#"
set -e
scratch=$1 files=$2 deploy=$3 as=$4; shift 4
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
cd "$scratch/root"
for dir in dev proc sys; do mount --rbind "/$dir" "$dir"; done
mount -t tmpfs tmpfs run
mkdir -p var/tmp/files var/tmp/deploy
mount --bind "$files" var/tmp/files
mount --bind "$deploy" var/tmp/deploy
export NODE_FILES=/var/tmp/files
exec chroot . bash -ec '
  as=$1; shift
  "$@"
  touch /var/tmp/first
  "$@"
  changed=$(find /etc /usr/bin -newer /var/tmp/first)
  [ -z "$changed" ] || { echo "the second run changed $changed"; exit 1; }
  install -d -o "$as" "/var/lib/$as"
  if [ "$as" = etcd ]; then
    set -a; . /etc/default/etcd; set +a
    start=/usr/bin/etcd
  else
    start=$(sed -n "s/^ExecStart=//p" /etc/systemd/system/troupe.service)
  fi
  exec setpriv --reuid="$as" --regid="$as" --clear-groups --no-new-privs --bounding-set=-all $start
' bash "$as" "$@"
"#;

/// A machine of [`MACHINE`]'s kind on a host of the net.
struct Machine {
    process: Process,
    _scratch: tempfile::TempDir,
}

impl Machine {
    fn start(net: &Net, host: usize, files: &Path, user: &str, provision: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = inside(Some(&net.ns(host)), "unshare");
        clean_env(&mut command);
        command
            .args(["--mount", "bash", "-c", MACHINE, "bash"])
            .args([scratch.path(), files, &root().join("deploy")])
            .arg(user)
            .args(provision)
            .env("NODE_SECRET", SECRET);
        Self {
            process: Process::start(&mut command),
            _scratch: scratch,
        }
    }

    fn node(net: &Net, host: usize, files: &Path) -> Self {
        let provisioner = "/var/tmp/deploy/provision-node.sh";
        let registry = format!("http://{}:2379", Net::ip(4));
        let args = [provisioner, NAMES[host - 1], &Net::ip(host), &registry];
        Self::start(net, host, files, "troupe", &args)
    }
}

const NAMES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// What the command line says on a host, as JSON.
fn ask(net: &Net, host: usize, args: &[&str]) -> serde_json::Value {
    let mut command = inside(Some(&net.ns(host)), TROUPE);
    clean_env(&mut command);
    let output = command.arg("--json").args(args).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Waits until this host sees these members alive under one master other than `not`, and answers who that is.
fn wait_whole(net: &Net, host: usize, names: &[&str], not: &str) -> String {
    until(
        &format!("{names:?} under one master, seen from {host}"),
        LONG,
        || {
            let seen = ask(net, host, &["members"]);
            let members = seen["members"].as_array().cloned().unwrap_or_default();
            let mut alive: Vec<_> = members.iter().filter(|m| m["state"] == "alive").collect();
            alive.sort_by_key(|m| m["name"].to_string());
            let alive: Vec<_> = alive.iter().filter_map(|m| m["name"].as_str()).collect();
            let master = ask(net, host, &["master"])["name"]
                .as_str()
                .unwrap_or("")
                .to_owned();
            let is_whole = alive == names && !master.is_empty() && master != not;
            is_whole.then_some(master).ok_or_else(|| seen.to_string())
        },
    )
}

#[test]
fn provisioners_make_a_cluster_of_four_machines_that_survives_the_loss_of_its_master() {
    if !["unshare", "setpriv", "etcd", "etcdctl"]
        .into_iter()
        .all(has)
    {
        return;
    }
    let Some(net) = Net::new(4) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let script = "d=$1; mount -t tmpfs tmpfs $d && mkdir $d/u $d/w $d/m && mount -t overlay overlay -o lowerdir=/,upperdir=$d/u,workdir=$d/w $d/m";
    let probe = Command::new("unshare")
        .args(["--mount", "bash", "-c", script, "bash"])
        .arg(scratch.path())
        .output()
        .unwrap();
    if !probe.status.success() {
        eprintln!(
            "SKIPPED: overlay mounts are not permitted here: {}",
            words(&probe)
        );
        return;
    }
    let files = files_for_a_machine(scratch.path());
    // The nodes first: they wait for the registry.
    let mut nodes: Vec<_> = (1..=3)
        .map(|host| Machine::node(&net, host, &files))
        .collect();
    let provisioner = "/var/tmp/deploy/provision-etcd.sh";
    let _etcd = Machine::start(&net, 4, &files, "etcd", &[provisioner, &Net::ip(4)]);

    let master = wait_whole(&net, 1, &NAMES, "");
    let done = ask(&net, 2, &["submit", "noop", "7", "--wait"]);
    assert_eq!(done["state"], "done", "{done}");

    let lost = NAMES.iter().position(|name| *name == master).unwrap();
    nodes[lost].process.kill();
    let left: Vec<_> = NAMES.into_iter().filter(|name| *name != master).collect();
    let witness = (lost + 1) % 3 + 1;
    let heir = wait_whole(&net, witness, &left, &master);
    nodes[lost] = Machine::node(&net, lost + 1, &files);
    assert_eq!(wait_whole(&net, witness, &NAMES, &master), heir);
}

#[test]
fn there_is_a_man_page_for_each_command_and_the_package_takes_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let written = Command::new(TROUPE)
        .arg("man")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(written.status.success(), "{}", words(&written));
    for page in ["troupe.1", "troupe-run.1", "troupe-registry-serve.1"] {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    // What the package takes from the checkout is there; the rest is made by deploy/deb/build.
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&manifest).unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    for asset in deb["assets"].as_array().unwrap() {
        let source = asset[0].as_str().unwrap();
        if !source.starts_with("target/") && !source.contains('*') {
            assert!(root().join(source).is_file(), "{source}");
        }
    }
    for script in ["postinst", "prerm", "postrm"] {
        let path = root().join("deploy/deb").join(script);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("#DEBHELPER#"), "{script}");
    }
}

/// YAML documents, as JSON; `None`, in words, where there is no ruby to read them.
fn yaml(file: &str) -> Option<Vec<serde_json::Value>> {
    if !has("ruby") {
        return None;
    }
    let script = "puts JSON.generate(YAML.load_stream(File.read(ARGV[0])))";
    // Aliases are resolved by load_stream.
    let read = Command::new("ruby")
        .args(["-ryaml", "-rjson", "-e", script, file])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(read.status.success(), "{file}: {}", words(&read));
    Some(serde_json::from_slice(&read.stdout).unwrap())
}

/// troupe takes these variables as settings.
fn assert_settings(config: &Path, variables: &[(String, String)]) {
    let mut command = Command::new(TROUPE);
    clean_env(&mut command);
    command.args(["config", "check", "--config"]).arg(config);
    command.envs(variables.iter().map(|(key, value)| (key, value)));
    let checked = command.output().unwrap();
    assert!(checked.status.success(), "{}", words(&checked));
}

/// The drain by default, and its four steps.
const LEAVING_S: u64 = 50;

#[test]
fn compose_gives_three_nodes_settings_that_they_take_and_time_to_drain() {
    let Some(files) = yaml("deploy/compose.yaml") else {
        return;
    };
    let services = &files[0]["services"];
    assert!(services["etcd"]["healthcheck"]["test"].is_array());
    for name in NAMES {
        let node = &services[name];
        let grace = node["stop_grace_period"].as_str().unwrap();
        let grace: u64 = grace.trim_end_matches('s').parse().unwrap();
        assert!(grace > LEAVING_S, "{name}");
        let settings = node["environment"].as_object().unwrap();
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
            .collect();
        assert!(settings.contains(&("TROUPE_NODE_NAME".to_owned(), name.to_owned())));
        assert_settings(&root().join("config.toml"), &settings);
        assert!(
            root()
                .join(node["build"]["dockerfile"].as_str().unwrap())
                .is_file()
        );
    }
}

#[test]
fn kubernetes_manifests_fit_each_other_and_hold_a_configuration_that_is_fine() {
    let Some(kustomization) = yaml("deploy/kubernetes/kustomization.yaml") else {
        return;
    };
    let mut resources = std::collections::BTreeMap::new();
    for file in kustomization[0]["resources"].as_array().unwrap() {
        let path = format!("deploy/kubernetes/{}", file.as_str().unwrap());
        for resource in yaml(&path).unwrap() {
            let kind = resource["kind"].as_str().unwrap().to_owned();
            assert_eq!(resource["metadata"]["name"], "troupe", "{path}");
            resources.insert(kind, resource);
        }
    }
    let set = &resources["StatefulSet"]["spec"];
    let pod = &set["template"]["spec"];
    let labels = &set["template"]["metadata"]["labels"];
    assert_eq!(set["selector"]["matchLabels"], *labels);
    assert_eq!(resources["Service"]["spec"]["selector"], *labels);
    let selects = |kind: &str, key: &str| resources[kind]["spec"][key]["matchLabels"].clone();
    assert_eq!(selects("PodDisruptionBudget", "selector"), *labels);
    assert_eq!(selects("NetworkPolicy", "podSelector"), *labels);
    assert_eq!(pod["enableServiceLinks"], false);
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > LEAVING_S);

    let node = &pod["containers"][0];
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(node[probe]["httpGet"]["path"], path);
    }
    let volumes: Vec<_> = pod["volumes"].as_array().unwrap().iter().collect();
    for container in [node, &pod["initContainers"][0]] {
        for mount in container["volumeMounts"].as_array().unwrap() {
            assert!(
                volumes.iter().any(|v| v["name"] == mount["name"]),
                "{mount}"
            );
        }
    }

    let config = resources["ConfigMap"]["data"]["config.toml"]
        .as_str()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let settings: Vec<_> = node["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| {
            // What Kubernetes fills in looks like this.
            let filled = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => "troupe-0",
                Some("status.podIP") => "10.244.1.7",
                _ => variable["value"].as_str().unwrap(),
            };
            let name = variable["name"].as_str().unwrap();
            (name.to_owned(), filled.to_owned())
        })
        .collect();
    assert_settings(&file, &settings);

    if has("kubectl") {
        let built = Command::new("kubectl")
            .args(["kustomize", "deploy/kubernetes"])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", words(&built));
    }
}

#[test]
fn the_dockerfile_copies_what_there_is() {
    let text = std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    for line in text.lines().filter(|line| line.starts_with("COPY ")) {
        let words: Vec<_> = line.split_whitespace().collect();
        if !words[1].starts_with("--") {
            assert!(root().join(words[1]).exists(), "{line}");
        }
    }
    let unit = std::fs::read_to_string(root().join("deploy/troupe.service")).unwrap();
    let command = r#"["run", "--config", "/etc/troupe/config.toml"]"#;
    assert!(text.contains(command) && unit.contains("run --config /etc/troupe/config.toml"));
}
