// Reads with Apache Kafka's Java consumer from the replica in its rack (KIP-392).
//
//     Near BOOTSTRAP TOPIC RACK BROKER
//
// BROKER is -1 for a consumer that is to stay with the leader. Ends well once records that were written after the consumer
// had turned to that broker have come.

import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;

public class Near {
    static final int RECORDS = 50;
    static final long MS_MAX = 60_000;

    static int preferred(KafkaConsumer<String, String> consumer) {
        for (var metric : consumer.metrics().entrySet()) {
            if (metric.getKey().name().equals("preferred-read-replica")) return ((Number) metric.getValue().metricValue()).intValue();
        }
        return -2;
    }

    public static void main(String[] args) throws Exception {
        String topic = args[1], rack = args[2];
        int broker = Integer.parseInt(args[3]);
        long deadline = System.currentTimeMillis() + MS_MAX;
        var partition = new TopicPartition(topic, 0);
        Map<String, Object> reading = Map.of("bootstrap.servers", args[0], "client.rack", rack, "enable.auto.commit", false);
        Map<String, Object> writing = Map.of("bootstrap.servers", args[0]);
        try (var consumer = new KafkaConsumer<>(reading, new StringDeserializer(), new StringDeserializer());
             var producer = new KafkaProducer<>(writing, new StringSerializer(), new StringSerializer())) {
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            // What was there is read first, by whoever turns out to be near.
            long end = consumer.endOffsets(List.of(partition)).get(partition);
            int stays = 0;
            long written = 0, read = 0;
            while (stays < RECORDS) {
                if (System.currentTimeMillis() > deadline) throw new IllegalStateException("it reads from " + preferred(consumer));
                producer.send(new ProducerRecord<>(topic, 0, null, "value")).get();
                written++;
                while (read < end + written) {
                    if (System.currentTimeMillis() > deadline) throw new IllegalStateException(read + " of " + (end + written));
                    read += consumer.poll(Duration.ofMillis(100)).count();
                }
                // Nothing is missed, nothing doubled.
                if (read != end + written || consumer.position(partition) != read) throw new IllegalStateException("read " + read);
                int now = preferred(consumer);
                if (stays > 0 && now != broker) throw new IllegalStateException("it left for " + now);
                if (now == broker) stays++;
            }
            System.out.println("the Java consumer in " + rack + " read from broker " + preferred(consumer) + " (-1: the leader)");
        }
    }
}
