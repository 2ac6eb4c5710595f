// Writes and reads through faults with Apache Kafka's Java clients and prints a history; tests/src/history.rs says what
// the lines mean.
//
//     Workload BOOTSTRAP TOPIC PARTITIONS PRODUCERS CONSUMERS
//
// The end of standard input ends the writing. Then all that was written is acknowledged or given up, the group reads on to
// the end, and everything is read once more.

import java.io.BufferedOutputStream;
import java.io.FileOutputStream;
import java.io.FileDescriptor;
import java.io.PrintStream;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;

public class Workload {
    static final int IN_FLIGHT_MAX = 400;
    static final long PAUSE_MS = 10;
    static final long READ_MS_MAX = 60_000;
    static final int COMMIT_EVERY = 50;
    static final String GROUP = "history";

    static String bootstrap;
    static String topic;
    static int partitions;
    static volatile boolean writingEnds;
    static volatile boolean readingEnds;
    static final List<String> failures = Collections.synchronizedList(new ArrayList<>());
    static final PrintStream out =
        new PrintStream(new BufferedOutputStream(new FileOutputStream(FileDescriptor.out), 1 << 16), false);

    static void say(Object... words) {
        StringJoiner line = new StringJoiner(" ");
        for (Object word : words) line.add(String.valueOf(word).replace('\n', ' '));
        synchronized (out) {
            out.println(line);
            out.flush();
        }
    }

    static void write(int name) {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", bootstrap,
            "client.id", "producer-" + name,
            "enable.idempotence", true,
            "delivery.timeout.ms", 80_000,
            "linger.ms", 2);
        Semaphore inFlight = new Semaphore(IN_FLIGHT_MAX);
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            for (long next = 0; !writingEnds; next++) {
                long number = next;
                for (int index = 0; index < partitions; index++) {
                    int partition = index;
                    inFlight.acquireUninterruptibly();
                    say("send", name, partition, number);
                    String value = name + ":" + partition + ":" + number;
                    producer.send(new ProducerRecord<>(topic, partition, null, value), (where, error) -> {
                        inFlight.release();
                        if (error != null) say("fail", name, partition, number, error);
                        else say("ack", name, partition, number, where.offset());
                    });
                }
                pause();
            }
            producer.flush();
        }
    }

    static KafkaConsumer<String, String> reader(String group) {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", bootstrap,
            "group.id", group,
            "enable.auto.commit", false,
            "default.api.timeout.ms", 10_000,
            "auto.offset.reset", "earliest");
        return new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
    }

    static void read(int name) {
        try (var consumer = reader(GROUP)) {
            Map<TopicPartition, OffsetAndMetadata> unsaid = new HashMap<>();
            consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
                public void onPartitionsRevoked(Collection<TopicPartition> taken) {
                    commit(consumer, name, unsaid);
                }
                public void onPartitionsLost(Collection<TopicPartition> taken) {
                    unsaid.clear();
                }
                public void onPartitionsAssigned(Collection<TopicPartition> given) {
                    for (TopicPartition one : given) say("assign", name, one.partition(), retried(() -> consumer.position(one)));
                }
            });
            int read = 0;
            while (!readingEnds) {
                ConsumerRecords<String, String> records;
                try {
                    records = consumer.poll(Duration.ofMillis(200));
                } catch (KafkaException error) {
                    say("note", "consumer", name, error);
                    continue;
                }
                for (var record : records) {
                    say("read", name, record.partition(), record.offset(), record.value());
                    unsaid.put(new TopicPartition(topic, record.partition()), new OffsetAndMetadata(record.offset() + 1));
                    read++;
                }
                if (records.isEmpty() || read >= COMMIT_EVERY) {
                    commit(consumer, name, unsaid);
                    read = 0;
                }
            }
        }
    }

    static void commit(KafkaConsumer<String, String> consumer, int name, Map<TopicPartition, OffsetAndMetadata> unsaid) {
        if (unsaid.isEmpty()) return;
        try {
            consumer.commitSync(unsaid);
            unsaid.forEach((where, offset) -> say("commit", name, where.partition(), offset.offset()));
        } catch (KafkaException error) {
            say("note", "commit of", name, error);
        }
        unsaid.clear();
    }

    static Map<TopicPartition, Long> readAll() {
        try (var consumer = reader("final")) {
            var all = all();
            Map<TopicPartition, Long> ends = retried(() -> consumer.endOffsets(all));
            consumer.assign(all);
            consumer.seekToBeginning(all);
            Map<TopicPartition, Long> positions = new HashMap<>();
            for (var one : all) positions.put(one, 0L);
            long deadline = System.currentTimeMillis() + READ_MS_MAX;
            while (!positions.equals(ends) && System.currentTimeMillis() < deadline) {
                for (var record : consumer.poll(Duration.ofMillis(200))) {
                    say("final", record.partition(), record.offset(), record.value());
                    positions.put(new TopicPartition(topic, record.partition()), record.offset() + 1);
                }
            }
            return ends;
        }
    }

    static List<TopicPartition> all() {
        List<TopicPartition> all = new ArrayList<>();
        for (int index = 0; index < partitions; index++) all.add(new TopicPartition(topic, index));
        return all;
    }

    interface Ask<T> { T ask(); }

    static <T> T retried(Ask<T> ask) {
        long deadline = System.currentTimeMillis() + READ_MS_MAX;
        while (true) {
            try {
                return ask.ask();
            } catch (KafkaException error) {
                if (System.currentTimeMillis() > deadline) throw error;
            }
        }
    }

    static void pause() {
        try {
            Thread.sleep(PAUSE_MS);
        } catch (InterruptedException error) {
            throw new IllegalStateException(error);
        }
    }

    interface Work { void run(int name); }

    static List<Thread> start(Work work, int count) {
        List<Thread> threads = new ArrayList<>();
        for (int number = 1; number <= count; number++) {
            int name = number;
            Thread thread = new Thread(() -> {
                try {
                    work.run(name);
                } catch (Throwable error) {
                    failures.add(error.toString());
                }
            });
            thread.start();
            threads.add(thread);
        }
        return threads;
    }

    public static void main(String[] args) throws Exception {
        bootstrap = args[0];
        topic = args[1];
        partitions = Integer.parseInt(args[2]);
        var writers = start(Workload::write, Integer.parseInt(args[3]));
        var readers = start(Workload::read, Integer.parseInt(args[4]));
        while (System.in.read() >= 0) { }
        writingEnds = true;
        for (Thread thread : writers) thread.join();
        var ends = readAll();
        try (var consumer = reader(GROUP)) {
            Set<TopicPartition> all = new HashSet<>(all());
            Map<TopicPartition, Long> committed = new HashMap<>();
            long deadline = System.currentTimeMillis() + READ_MS_MAX;
            while (!committed.equals(ends) && System.currentTimeMillis() < deadline) {
                var found = retried(() -> consumer.committed(all));
                committed.clear();
                found.forEach((where, offset) -> committed.put(where, offset == null ? 0 : offset.offset()));
                pause();
            }
            committed.forEach((where, offset) -> say("committed", where.partition(), offset));
        }
        readingEnds = true;
        for (Thread thread : readers) thread.join();
        for (String failure : failures) say("note", "failure", failure);
        say("done");
        System.exit(failures.isEmpty() ? 0 : 1);
    }
}
