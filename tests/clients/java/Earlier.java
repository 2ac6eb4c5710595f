import java.time.Duration;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeSet;
import org.apache.kafka.clients.admin.AdminClient;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.common.utils.AppInfoParser;

/** What every Java client since 2.1 can do, with that API: a topic, records, a transaction, a group with its offsets. */
public class Earlier {
    static String bootstrap;

    public static void main(String[] args) throws Exception {
        bootstrap = args[0];
        String name = "earlier-" + AppInfoParser.getVersion();
        AdminClient admin = AdminClient.create(common());
        admin.createTopics(List.of(new NewTopic(name, 2, (short) 1))).all().get();
        int partitions = admin.describeTopics(List.of(name)).all().get().get(name).partitions().size();
        check(partitions == 2, "partitions: " + partitions);

        Properties idempotent = common();
        idempotent.put("enable.idempotence", "true");
        idempotent.put("acks", "all");
        idempotent.put("compression.type", "lz4");
        try (KafkaProducer<String, String> producer = producer(idempotent)) {
            for (int number = 0; number < 100; number++) {
                producer.send(new ProducerRecord<>(name, number % 2, null, "plain-" + number));
            }
            producer.flush();
        }

        // What is read and where to go on are one transaction; another one is given up.
        Properties transactional = common();
        transactional.put("transactional.id", name);
        try (KafkaProducer<String, String> producer = producer(transactional)) {
            producer.initTransactions();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(name, 0, null, "aborted")).get();
            producer.abortTransaction();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(name, 1, null, "committed")).get();
            producer.sendOffsetsToTransaction(
                Map.of(new TopicPartition(name, 0), new OffsetAndMetadata(50)), name);
            producer.commitTransaction();
        }

        TreeSet<String> seen = read(name, 51);
        check(seen.size() == 51, "after the offset of the transaction: " + seen);
        check(seen.contains("committed") && seen.contains("plain-1"), "read: " + seen);
        check(!seen.contains("aborted") && !seen.contains("plain-0"), "read: " + seen);
        // All of it is committed: the next one finds nothing but what comes now.
        try (KafkaProducer<String, String> producer = producer(common())) {
            producer.send(new ProducerRecord<>(name, 0, null, "last")).get();
        }
        check(read(name, 1).equals(new TreeSet<>(List.of("last"))), "read again");
        admin.deleteTopics(List.of(name)).all().get();
        admin.close();
        System.out.println("passed with " + AppInfoParser.getVersion());
    }

    static Properties common() {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        settings.put("request.timeout.ms", "20000");
        return settings;
    }

    static KafkaProducer<String, String> producer(Properties settings) {
        return new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer());
    }

    /** Reads in the group until so many values are there, and commits. */
    static TreeSet<String> read(String name, int count) {
        Properties settings = common();
        settings.put("group.id", name);
        settings.put("auto.offset.reset", "earliest");
        settings.put("enable.auto.commit", "false");
        settings.put("isolation.level", "read_committed");
        TreeSet<String> seen = new TreeSet<>();
        try (KafkaConsumer<String, String> consumer =
            new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(Collections.singletonList(name));
            long end = System.currentTimeMillis() + 60_000;
            while (seen.size() < count && System.currentTimeMillis() < end) {
                consumer.poll(Duration.ofMillis(200)).forEach(record -> seen.add(record.value()));
            }
            consumer.commitSync();
        }
        return seen;
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
