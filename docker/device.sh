#!/bin/sh
# Entry point of a device: enrols once with the kit that the operator gave, then becomes the command.
set -eu
if [ ! -e "$LAMELLA_DEVICE_HOME/state.json" ]; then
  # Plain http, because this network is private; what is installed is signed either way.
  lamella-device enroll /run/kit/enrolment.json --name "${DEVICE_NAME:-$(hostname)}" --allow-http
fi
exec "$@"
