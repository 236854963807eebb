#!/bin/sh
# `setup.sh`: runs once, after API and SuperLink are up: the base model, and a kit for each device of compose.yaml.
# `setup.sh kit NAME`: the kit of one more device, as a tar archive on stdout. What exists is kept.
set -eu
umask 077
model=chat
kits=/run/kits
export FLWR_HOME=/tmp/flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

mkdir -p "$FLWR_HOME"
cat >"$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "compose"

[superlink.compose]
address = "superlink:9100"
root-certificates = "/run/tls/superlink/ca.crt"
TOML

# A kit is everything that a device is given out of band. To update: an enrolment file. To train as well: a key of its own,
# which the SuperLink knows, and the certificate by which to know the gateway.
make_kit() { # FOLDER NAME|'' (a name for a device that trains)
  [ ! -e "$1/enrolment.json" ] || return 0
  if [ -n "$2" ]; then
    rm -f "$1/node.key" "$1/node.key.pub"
    lamella superlink node-key "$1/node.key" >&2
    flwr supernode register "$1/node.key.pub" --name "$2" >&2
    cp /run/tls/superlink/ca.crt "$1/ca.crt"
  fi
  # Last: without it the kit is not ready, and is made anew.
  lamella devices invite --model "$model" --out "$1/enrolment.json" >&2
}

if [ "${1:-}" = kit ]; then
  mkdir /tmp/kit
  make_kit /tmp/kit "${2:?setup.sh kit NAME}"
  exec tar -C /tmp/kit -c .
fi

if ! lamella versions --model "$model" --json | grep -q '"kind"'; then
  if [ "$LAMELLA_BASE" = smollm2 ]; then
    lamella base import --model "$model" --smollm2
  else
    # One thread: this model is too small to share out.
    OMP_NUM_THREADS=1 lamella base pretrain --model "$model" --data chitchat
  fi
fi

# One person's chat for each SuperNode; on a real device it is that person's own.
number=0
for name in supernode-1 supernode-2; do
  number=$((number + 1))
  if [ ! -e $kits/$name/data ]; then
    [ -e /tmp/fleet ] || lamella fleet make --model "$model" --devices 2 --out /tmp/fleet
    mkdir $kits/$name/data
    cp "$(find /tmp/fleet/data -maxdepth 1 -name '*.jsonl' | sort | sed -n "${number}p")" $kits/$name/data/
  fi
  make_kit $kits/$name $name
done
make_kit $kits/agent ''
