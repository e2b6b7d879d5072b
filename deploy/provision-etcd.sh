#!/usr/bin/env bash
# Makes a Debian machine the cluster's registry: etcd as a systemd service on its private address. May be run again at any time.
#
#   provision-etcd.sh ADDRESS
#
# For a trusted private network: in the clear, without users. docs/operations.md says how etcd gets TLS and three members.
# DESTDIR=DIR only writes the files, below DIR: nothing is installed, started or looked at.
set -euo pipefail

address=${1:?usage: provision-etcd.sh ADDRESS}
destdir=${DESTDIR:-}

say() { printf 'provision-etcd: %s\n' "$*"; }

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

install_etcd() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends etcd-server etcd-client
}

# Puts stdin into a file; succeeds if that changed it.
put() {
  local path=$1 new
  new=$(cat)
  [ -f "$path" ] && [ "$new" = "$(cat "$path")" ] && return 1
  mkdir -p "$(dirname "$path")"
  printf '%s\n' "$new" >"$path"
}

if [ -z "$destdir" ]; then
  retry 15 has_address || { say "this machine has no address $address" >&2; exit 1; }
  if ! command -v etcd >/dev/null || ! command -v etcdctl >/dev/null; then
    retry 5 install_etcd
  fi
fi

# By environment alone: etcd 3.4 refuses a flag that the unit's environment sets too.
changed=no
put "$destdir/etc/default/etcd" <<END && changed=yes
# Written by provision-etcd.sh.
ETCD_NAME=etcd
ETCD_DATA_DIR=/var/lib/etcd/default
ETCD_LISTEN_CLIENT_URLS=http://$address:2379,http://127.0.0.1:2379
ETCD_ADVERTISE_CLIENT_URLS=http://$address:2379
ETCD_LISTEN_PEER_URLS=http://127.0.0.1:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://127.0.0.1:2380
ETCD_INITIAL_CLUSTER=etcd=http://127.0.0.1:2380
ETCD_AUTO_COMPACTION_MODE=periodic
ETCD_AUTO_COMPACTION_RETENTION=1h
ETCD_QUOTA_BACKEND_BYTES=2147483648
END
# At boot the address may come after the network is said to be there; and a registry is always wanted.
put "$destdir/etc/systemd/system/etcd.service.d/troupe.conf" <<END && changed=yes
[Unit]
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0
[Service]
Restart=always
RestartSec=1
END

[ -n "$destdir" ] && { say "files are below $destdir"; exit 0; }
if [ ! -d /run/systemd/system ]; then
  say "no systemd runs here: etcd is set up and not started"
  exit 0
fi
systemctl daemon-reload
systemctl enable --quiet etcd
if [ "$changed" = yes ] || ! systemctl is-active --quiet etcd; then
  systemctl restart etcd
fi
answers() { ETCDCTL_API=3 etcdctl --endpoints="http://$address:2379" endpoint health; }
retry 30 answers
