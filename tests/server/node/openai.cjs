// OpenAI's client for Node.

const assert = require("node:assert/strict");
const { test } = require("node:test");
const OpenAI = require("openai");
const { zodResponseFormat, zodFunction } = require("openai/helpers/zod");
const { ASK, HI, MODEL, Person, SCRIPTED, TOO_LONG, Weather, all, parameters } = require("./asked.cjs");

const client = (url, key = "secret") =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const scripted = client(SCRIPTED);
const model = client(MODEL);
const said = (content) => [{ role: "user", content }];
const weather = { type: "function", function: { name: "weather", parameters } };

test("chat", async () => {
  const answer = await scripted.chat.completions.create({ model: "default", messages: said(HI) });
  assert.equal(answer.choices[0].message.content, "Hello there, friend");
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.ok(answer.usage.prompt_tokens > 0);
});

test("stream", async () => {
  const stream = await scripted.chat.completions.create({
    model: "default",
    messages: said(HI),
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = await all(stream);
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, "Hello there, friend");
  assert.ok(chunks.at(-1).usage.completion_tokens > 0);
});

test("stream of the embedded model", async () => {
  const runner = model.chat.completions.stream({
    model: "default",
    messages: said(HI),
    max_tokens: 8,
  });
  const pieces = [];
  runner.on("content", (piece) => pieces.push(piece));
  const text = await runner.finalContent();
  assert.equal(pieces.join(""), text);
  assert.ok(text);
});

test("a stream that is aborted", async () => {
  const stream = await model.chat.completions.create({
    model: "default",
    messages: said(HI),
    max_tokens: 400,
    ignore_eos: true,
    stream: true,
  });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break;
  }
  assert.ok(stream.controller.signal.aborted);
});

test("tools, run by the client", async () => {
  const runner = scripted.chat.completions.runTools({
    model: "default",
    messages: said(ASK),
    stream: true,
    tools: [
      {
        type: "function",
        function: {
          name: "weather",
          parameters,
          parse: JSON.parse,
          function: ({ city }) => `sunny in ${city}`,
        },
      },
    ],
  });
  assert.equal(await runner.finalContent(), "Sunny.");
  const roles = runner.messages.map((message) => message.role);
  assert.deepEqual(roles, ["user", "assistant", "tool", "assistant"]);
  assert.equal(runner.messages[2].content, "sunny in Rome");
});

test("a call that is demanded", async () => {
  const answer = await model.chat.completions.parse({
    model: "default",
    messages: said(ASK),
    tools: [zodFunction({ name: "weather", parameters: Weather })],
    tool_choice: "required",
  });
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.name, "weather");
  Weather.parse(call.function.parsed_arguments);
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
});

test("a schema", async () => {
  const answer = await model.chat.completions.parse({
    model: "default",
    messages: said("Bob is 5 years old."),
    response_format: zodResponseFormat(Person, "person"),
  });
  Person.parse(answer.choices[0].message.parsed);
});

test("responses", async () => {
  const answer = await scripted.responses.create({ model: "default", input: HI });
  assert.equal(answer.output_text, "Hello there, friend");
  const stream = scripted.responses.stream({
    model: "default",
    input: ASK,
    tools: [{ type: "function", name: "weather", parameters, strict: true }],
  });
  const final = await stream.finalResponse();
  const call = final.output.find((item) => item.type === "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { city: "Rome" });
});

test("completions and models", async () => {
  const answer = await scripted.completions.create({ model: "default", prompt: HI });
  assert.equal(answer.choices[0].text, "Hello there, friend");
  const models = await all(scripted.models.list());
  assert.deepEqual(models.map((found) => found.id), ["scripted"]);
});

test("errors", async () => {
  const ask = (more, by = scripted) =>
    by.chat.completions.create({ model: "default", messages: said(HI), ...more });
  await assert.rejects(ask({ model: "other" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.status, error.code], [404, "model_not_found"]);
    return true;
  });
  await assert.rejects(ask({ temperature: -1 }), OpenAI.BadRequestError);
  await assert.rejects(ask({ messages: said(TOO_LONG) }, model), (error) => {
    assert.equal(error.code, "context_length_exceeded");
    return true;
  });
  await assert.rejects(ask({}, client(SCRIPTED, "wrong")), OpenAI.AuthenticationError);
  await assert.rejects(ask({ messages: said("break") }), OpenAI.InternalServerError);
  await assert.rejects(ask({ tools: [weather], tool_choice: "sometimes" }), OpenAI.BadRequestError);
});
