#!/bin/sh
# A producer without Python: mosquitto_pub where the broker's word is enough, mosquitto_rr where the bridge's is wanted.
#   sh examples/producer.sh            BRIDGE_MQTT__HOST, …PORT, …USERNAME and …PASSWORD as for the others
set -eu
broker="-h ${BRIDGE_MQTT__HOST:-127.0.0.1} -p ${BRIDGE_MQTT__PORT:-1883} -V 5 -q 1"
device=${BRIDGE_MQTT__USERNAME:-shell-1} # the shipped ACL gives each name the topics below it
set -- ${BRIDGE_MQTT__USERNAME:+-u "$BRIDGE_MQTT__USERNAME" -P "${BRIDGE_MQTT__PASSWORD:-}"}
run=$(date +%s)-$$

# The broker has it when this returns; the user property `id` lets it be repeated without being stored twice.
for frame in 1 2 3; do
    # shellcheck disable=SC2086 # the options are words
    mosquitto_pub $broker "$@" -t "edge/predictions/$device" -D publish user-property id "$run-$frame" \
        -m "{\"label\":\"fine\",\"frame\":$frame}"
done

# The bridge has it on its disk when this prints {"id":…,"state":"stored",…}; asked again it says "duplicate".
for attempt in 1 2 3; do
    # shellcheck disable=SC2086
    if mosquitto_rr $broker "$@" -W 5 -t "edge/predictions/$device" -e "edge/buffer/receipts/$device/$run" \
        -D publish correlation-data "$run" -D publish user-property id "$run-alarm" \
        -m '{"label":"crack","score":0.97}'; then
        exit 0
    fi
done
echo "no receipt: is a bridge running?" >&2
exit 1
