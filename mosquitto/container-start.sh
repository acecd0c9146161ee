#!/bin/sh
# Gives each name of the ACL a random password at the first start and keeps it in the volume /credentials, one file
# a name; so nothing has to be typed before `docker compose up`, and no password stands in any file of the project.
set -eu
umask 077
: > /run/mosquitto/passwd
for name in bridge producer; do
    [ -s "/credentials/$name" ] || head -c 32 /dev/urandom | base64 | tr -d '/+=\n' > "/credentials/$name"
    mosquitto_passwd -b /run/mosquitto/passwd "$name" "$(cat "/credentials/$name")"
done
chown mosquitto /run/mosquitto/passwd
chmod 0711 /credentials
chown 10001 /credentials/bridge # the user of the bridge's container
exec "$@"
