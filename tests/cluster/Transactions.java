// Writes and reads in transactions, through faults, with Apache Kafka's Java clients, and prints a history;
// tests/src/transactions.rs says what the lines mean.
//
//     Transactions BOOTSTRAP TOPIC PARTITIONS PRODUCERS CONSUMERS
//
// Producers write a value to every partition in each transaction, and abort every fourth. Members of a group copy what is committed
// to the topic TOPIC-out, with their offsets in the same transactions. The end of standard input ends the writing; then the group
// copies the rest, and both topics are read.

import java.io.BufferedOutputStream;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TimeoutException;
import org.apache.kafka.common.serialization.*;

public class Transactions {
    static final long PAUSE_MS = 10;
    static final long CALLS_MS_MAX = 90_000;
    static final long READ_MS_MAX = 60_000;
    static final int ABORT_EVERY = 4;
    static final String GROUP = "copies";

    static String bootstrap;
    static String topic;
    static String copies;
    static int partitions;
    static volatile boolean writingEnds;
    static volatile boolean readingEnds;
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

    interface Call { void run(); }

    /** Calls until it succeeds or cannot any more: what timed out may be called again, and goes on. */
    static void insist(Call call) {
        long deadline = System.currentTimeMillis() + CALLS_MS_MAX;
        while (true) {
            try {
                call.run();
                return;
            } catch (TimeoutException error) {
                if (System.currentTimeMillis() > deadline) throw error;
            }
        }
    }

    static KafkaProducer<String, String> begun(String id) {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", bootstrap,
            "client.id", id,
            "transactional.id", id,
            "max.block.ms", 10_000,
            "linger.ms", 2);
        var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer());
        insist(producer::initTransactions);
        return producer;
    }

    /** Whether it was committed; null if that is not known, and the producer cannot go on. */
    static Boolean end(KafkaProducer<String, String> producer, boolean commits, String name) {
        try {
            insist(commits ? producer::commitTransaction : producer::abortTransaction);
            return commits;
        } catch (KafkaException error) {
            say("note", name, error);
        }
        try {
            insist(producer::abortTransaction);
            return false;
        } catch (KafkaException | IllegalStateException error) {
            say("note", name, error);
            return null;
        }
    }

    static void write(int name) {
        String id = "writer-" + name;
        KafkaProducer<String, String> producer = null;
        for (long number = 0; !writingEnds; number++) {
            if (producer == null) producer = begun(id);
            producer.beginTransaction();
            for (int partition = 0; partition < partitions; partition++) {
                say("send", name, partition, number);
                producer.send(new ProducerRecord<>(topic, partition, null, name + ":" + partition + ":" + number));
            }
            Boolean committed = end(producer, number % ABORT_EVERY != ABORT_EVERY - 1, id);
            for (int partition = 0; partition < partitions; partition++) {
                if (committed == null) say("fail", name, partition, number, "unknown");
                else if (committed) say("ack", name, partition, number, -1);
                else say("abort", name, partition, number);
            }
            if (committed == null) {
                producer.close(Duration.ZERO);
                producer = null;
            }
            pause(PAUSE_MS);
        }
        if (producer != null) producer.close(Duration.ZERO);
    }

    static KafkaConsumer<String, String> reader(String group) {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", bootstrap,
            "group.id", group,
            "enable.auto.commit", false,
            "isolation.level", "read_committed",
            "max.poll.records", 200,
            "default.api.timeout.ms", 10_000,
            "auto.offset.reset", "earliest");
        return new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
    }

    static void copy(int name) {
        String id = "copier-" + name;
        var producer = begun(id);
        var consumer = reader(GROUP);
        consumer.subscribe(List.of(topic));
        while (!readingEnds) {
            ConsumerRecords<String, String> records;
            try {
                records = consumer.poll(Duration.ofMillis(200));
            } catch (KafkaException error) {
                say("note", id, error);
                continue;
            }
            if (records.isEmpty()) continue;
            Boolean committed;
            try {
                producer.beginTransaction();
                var offsets = new HashMap<TopicPartition, OffsetAndMetadata>();
                for (var record : records) {
                    say("read", name, record.partition(), record.offset(), record.value());
                    producer.send(new ProducerRecord<>(copies, record.partition(), null, record.value()));
                    offsets.put(new TopicPartition(topic, record.partition()), new OffsetAndMetadata(record.offset() + 1));
                }
                var writing = producer;
                var reading = consumer;
                insist(() -> writing.sendOffsetsToTransaction(offsets, reading.groupMetadata()));
                committed = end(producer, true, id);
            } catch (KafkaException error) {
                say("note", id, error);
                committed = end(producer, false, id);
            }
            if (committed == null) {
                producer.close(Duration.ZERO);
                producer = begun(id);
            }
            if (committed == null || !committed) {
                // What was read has not been copied: a new member begins where the group is.
                consumer.close();
                consumer = reader(GROUP);
                consumer.subscribe(List.of(topic));
            }
        }
        consumer.close();
        producer.close(Duration.ZERO);
    }

    /** What is committed; hands back the offset after the last value of each partition. */
    static Map<Integer, Long> readAll(String name, String kind) {
        var after = new TreeMap<Integer, Long>();
        try (var consumer = reader("final")) {
            var all = new ArrayList<TopicPartition>();
            for (int partition = 0; partition < partitions; partition++) {
                all.add(new TopicPartition(name, partition));
                after.put(partition, 0L);
            }
            consumer.assign(all);
            consumer.seekToBeginning(all);
            Map<TopicPartition, Long> ends;
            try (var uncommitted = new KafkaConsumer<>(Map.of("bootstrap.servers", bootstrap), new StringDeserializer(), new StringDeserializer())) {
                ends = uncommitted.endOffsets(all);
            }
            long deadline = System.currentTimeMillis() + READ_MS_MAX;
            while (all.stream().anyMatch(one -> consumer.position(one) < ends.get(one))) {
                if (System.currentTimeMillis() > deadline) throw new IllegalStateException(name + ": transactions are open below " + ends);
                for (var record : consumer.poll(Duration.ofMillis(200))) {
                    say(kind, record.partition(), record.offset(), record.value());
                    after.put(record.partition(), record.offset() + 1);
                }
            }
        }
        return after;
    }

    static Map<Integer, Long> committed() {
        var committed = new TreeMap<Integer, Long>();
        try (var consumer = reader(GROUP)) {
            var all = new HashSet<TopicPartition>();
            for (int partition = 0; partition < partitions; partition++) all.add(new TopicPartition(topic, partition));
            consumer.committed(all, Duration.ofMillis(READ_MS_MAX))
                .forEach((one, offset) -> committed.put(one.partition(), offset == null ? 0 : offset.offset()));
        }
        return committed;
    }

    interface Work { void run(int name); }

    static List<Thread> start(Work work, String what, int count) {
        var threads = new ArrayList<Thread>();
        for (int i = 1; i <= count; i++) {
            int name = i;
            var thread = new Thread(() -> guarded(() -> work.run(name), what + " " + name));
            thread.start();
            threads.add(thread);
        }
        return threads;
    }

    static void guarded(Call work, String what) {
        try {
            work.run();
        } catch (Throwable error) {
            say("note", "failure", what, error);
            Runtime.getRuntime().halt(1);
        }
    }

    static void pause(long millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException error) {
            throw new IllegalStateException(error);
        }
    }

    public static void main(String[] args) throws Exception {
        bootstrap = args[0];
        topic = args[1];
        copies = topic + "-out";
        partitions = Integer.parseInt(args[2]);
        var writers = start(Transactions::write, "writer", Integer.parseInt(args[3]));
        var copiers = start(Transactions::copy, "copier", Integer.parseInt(args[4]));
        while (System.in.read() >= 0) { }
        writingEnds = true;
        for (var thread : writers) thread.join();
        guarded(() -> {
            var after = readAll(topic, "final");
            long deadline = System.currentTimeMillis() + READ_MS_MAX;
            while (true) {
                var committed = committed();
                boolean isDone = after.entrySet().stream().allMatch(one -> committed.get(one.getKey()) >= one.getValue());
                if (isDone || System.currentTimeMillis() > deadline) {
                    committed.forEach((partition, offset) -> say("committed", partition, offset));
                    break;
                }
                pause(100);
            }
        }, "the end");
        readingEnds = true;
        for (var thread : copiers) thread.join();
        guarded(() -> readAll(copies, "copy"), "the copies");
        say("done");
        System.exit(0);
    }
}
