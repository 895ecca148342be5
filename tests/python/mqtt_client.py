"""A device written by somebody else: asks a Glimpse server through paho-mqtt.

Reads requests from standard input, one JSON object a line: {"payload": hex, "content_type": text or null}. Publishes
each to the device's query topic, waits for its reply, and writes {"payload", "topic", "content_type", "correlated"} a
line; `correlated` says whether the correlation data came back. MQTT 3.1.1 has no such properties: there it stays null.
"""
import argparse
import json
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT_S = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("device")
    parser.add_argument("--version", choices=["5", "3.1.1"], default="5")
    parser.add_argument("--ca", help="authority of the server's certificate: connects by TLS")
    parser.add_argument("--password-file", help="the device's password")
    options = parser.parse_args()
    host, port = options.address.rsplit(":", 1)
    is_5 = options.version == "5"
    topic = "glimpse/v1/devices/%s/" % options.device
    # Under MQTT 5 replies are asked for on a topic of our choosing; 3.1.1 gets them on the default one.
    reply_topic = topic + ("reply/paho" if is_5 else "reply")

    events = queue.Queue()
    version = mqtt.MQTTv5 if is_5 else mqtt.MQTTv311
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=options.device, protocol=version)
    client.on_message = lambda _client, _data, message: events.put(message)
    client.on_subscribe = lambda *_: events.put("subscribed")
    # Both of them: an answer on the other one is an answer too many.
    client.on_connect = lambda client, *_: client.subscribe(topic + "reply/#", qos=1)
    if options.ca:
        client.tls_set(ca_certs=options.ca)
    if options.password_file:
        with open(options.password_file, encoding="utf-8") as file:
            client.username_pw_set(options.device, file.read().rstrip("\n"))
    client.connect(host, int(port))
    client.loop_start()
    assert events.get(timeout=WAIT_S) == "subscribed"

    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        properties, correlation = None, b"query %d" % number
        if is_5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ResponseTopic = reply_topic
            properties.CorrelationData = correlation
            if request["content_type"]:
                properties.ContentType = request["content_type"]
        client.publish(topic + "query", bytes.fromhex(request["payload"]), qos=1, properties=properties)
        print(json.dumps(describe(events.get(timeout=WAIT_S), correlation if is_5 else None)), flush=True)
    # Whatever else comes was not asked for.
    try:
        sys.exit("an answer too many: %r" % events.get(timeout=0.5).payload)
    except queue.Empty:
        pass
    client.disconnect()
    client.loop_stop()


def describe(message, correlation):
    properties = message.properties
    return {
        "payload": message.payload.hex(),
        "topic": message.topic,
        "content_type": getattr(properties, "ContentType", None),
        "correlated": correlation and getattr(properties, "CorrelationData", None) == correlation,
    }


if __name__ == "__main__":
    main()
