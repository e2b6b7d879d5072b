#!/usr/bin/env bash
# Makes a Debian machine a node: the troupe binary, its user, unit, configuration and secret. May be run again at any time.
#
#   provision-node.sh NAME ADDRESS REGISTRY
#
# NAME is the node's, ADDRESS the one that other nodes dial (never that of a NAT interface), REGISTRY the URL of etcd, or
# several with commas. From the environment (TROUPE_… would be settings of troupe itself):
#   NODE_FILES   where troupe.service and, if there is one, the troupe binary are (default: where this script is)
#   NODE_SOURCE  the source to build it from when there is no binary that runs here (default: /vagrant)
#   NODE_SECRET  the cluster secret, 64 hexadecimal digits, the same on all nodes (default: what is in /etc/troupe/secret)
#   NODE_ADMIN   where the admin API listens (default: 127.0.0.1:22223)
#   DESTDIR      only writes the files, below it: nothing is installed, started or looked at
set -euo pipefail

usage="usage: provision-node.sh NAME ADDRESS REGISTRY"
name=${1:?$usage} address=${2:?$usage} registry=${3:?$usage}
files=${NODE_FILES:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}
source=${NODE_SOURCE:-/vagrant}
secret=${NODE_SECRET:-}
admin=${NODE_ADMIN:-127.0.0.1:22223}
destdir=${DESTDIR:-}

say() { printf 'provision-node: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

# Machines that come up at one time fight over mirrors, locks and addresses: what fails is tried again.
retry() {
  local left=$1
  shift
  until "$@"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || { say "gave up: $*" >&2; return 1; }
    sleep 2
  done
}

has_address() { ip -o addr show | grep -qF " $address/"; }

# Puts stdin into a file of this mode and owner; succeeds if that changed it.
put() {
  local path=$1 mode=$2 owner=$3 new
  new=$(cat)
  [ -f "$path" ] && [ "$new" = "$(cat "$path")" ] && return 1
  mkdir -p "$(dirname "$path")"
  (umask 077 && printf '%s\n' "$new" >"$path.new")
  chmod "$mode" "$path.new"
  [ -n "$destdir" ] || chown "$owner" "$path.new"
  mv -f "$path.new" "$path"
}

build() {
  [ -f "$source/Cargo.toml" ] || fail "there is no troupe in $files that runs here, and no source in $source"
  say "building from $source; this takes some minutes"
  export DEBIAN_FRONTEND=noninteractive CARGO_HOME=/opt/cargo RUSTUP_HOME=/opt/rustup
  packages() { apt-get update -qq && apt-get install -y -qq --no-install-recommends build-essential ca-certificates curl; }
  retry 5 packages
  rustup() { curl -fsS https://sh.rustup.rs | sh -s -- -y -q --profile minimal --no-modify-path; }
  [ -x /opt/cargo/bin/cargo ] || retry 5 rustup
  (cd "$source" && PATH="/opt/cargo/bin:$PATH" CARGO_TARGET_DIR=/var/cache/troupe-build cargo build --release --locked)
  built=/var/cache/troupe-build/release/troupe
}

changed=no
if [ -z "$destdir" ]; then
  retry 15 has_address || fail "this machine has no address $address"
  getent passwd troupe >/dev/null ||
    useradd --system --user-group --home-dir /var/lib/troupe --no-create-home --shell /usr/sbin/nologin troupe
fi

# The binary: the one that came along if it runs here (its C library may be newer), else one built here.
built=$files/troupe
[ ! -f "$built" ] || [ -x "$built" ] || chmod +x "$built"
if ! "$built" version >/dev/null 2>&1; then
  [ -z "$destdir" ] || fail "there is no troupe in $files that runs here"
  build
fi
if ! cmp -s "$built" "$destdir/usr/bin/troupe"; then
  install -D -m 755 "$built" "$destdir/usr/bin/troupe.new"
  # In one step: the old one may be running.
  mv -f "$destdir/usr/bin/troupe.new" "$destdir/usr/bin/troupe"
  changed=yes
fi
put "$destdir/etc/systemd/system/troupe.service" 644 root:root <"$files/troupe.service" && changed=yes

if [ -n "$secret" ]; then
  put "$destdir/etc/troupe/secret" 600 troupe:troupe <<<"$secret" && changed=yes
fi
[ -f "$destdir/etc/troupe/secret" ] || fail "there is no cluster secret: make one (troupe keygen), and give it to every node as NODE_SECRET"
put "$destdir/etc/troupe/config.toml" 644 root:root <<END && changed=yes
# Written by provision-node.sh. Every setting: troupe config show --origin --config /etc/troupe/config.toml
[node]
name = "$name"
advertise = "$address:22222"
admin = "$admin"

[registry]
endpoints = ["${registry//,/\", \"}"]

[security]
secret_file = "/etc/troupe/secret"
END
"$destdir/usr/bin/troupe" config check --config "$destdir/etc/troupe/config.toml"

[ -n "$destdir" ] && { say "files are below $destdir"; exit 0; }
if [ ! -d /run/systemd/system ]; then
  say "no systemd runs here: $name is set up and not started"
  exit 0
fi
systemctl daemon-reload
systemctl enable --quiet troupe
# The registry's machine may still be coming up: systemd goes on trying, and so does this.
joined() { systemctl is-active --quiet troupe || { systemctl start --no-block troupe; sleep 3; systemctl is-active --quiet troupe; }; }
if [ "$changed" = yes ]; then systemctl restart --no-block troupe; fi
retry 60 joined
say "$name has joined: $(systemctl show --property=StatusText --value troupe)"
