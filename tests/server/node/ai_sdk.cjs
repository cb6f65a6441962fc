// The AI SDK, with its provider for servers of OpenAI's protocol.

const assert = require("node:assert/strict");
const { test } = require("node:test");
const ai = require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { ASK, HI, MODEL, Person, SCRIPTED, TOO_LONG, Weather, all } = require("./asked.cjs");

const provider = (url, apiKey = "secret") =>
  createOpenAICompatible({
    name: "local",
    baseURL: `${url}/v1`,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
const scripted = provider(SCRIPTED)("default");
const model = provider(MODEL)("default");
const weather = ai.tool({
  description: "Weather of a city.",
  inputSchema: Weather,
  execute: async ({ city }) => `sunny in ${city}`,
});

test("chat", async () => {
  const answer = await ai.generateText({ model: scripted, prompt: HI, system: "Be kind." });
  assert.equal(answer.text, "Hello there, friend");
  assert.equal(answer.finishReason, "stop");
  assert.ok(answer.usage.inputTokens > 0);
});

test("stream", async () => {
  const answer = ai.streamText({ model: scripted, prompt: HI });
  const pieces = await all(answer.textStream);
  assert.ok(pieces.length > 1);
  assert.equal(pieces.join(""), "Hello there, friend");
  assert.ok((await answer.usage).outputTokens > 0);
});

test("stream of the embedded model", async () => {
  const answer = ai.streamText({ model, prompt: HI, maxOutputTokens: 8 });
  assert.ok(await answer.text);
  assert.equal((await answer.usage).outputTokens, 8);
  assert.equal(await answer.finishReason, "length");
});

test("a thought and a tool, run by the client, in two steps", async () => {
  const asked = { model: scripted, prompt: ASK, tools: { weather } };
  const answer = ai.streamText({ ...asked, stopWhen: ai.stepCountIs(3) });
  assert.equal(await answer.text, "Sunny.");
  const steps = await answer.steps;
  assert.deepEqual(steps.map((step) => step.finishReason), ["tool-calls", "stop"]);
  assert.equal(steps[0].reasoningText, "Let me look.");
  assert.equal(steps[0].toolResults[0].output, "sunny in Rome");
});

test("a call that is demanded", async () => {
  const asked = { model, prompt: ASK, tools: { weather }, toolChoice: "required" };
  const answer = await ai.generateText(asked);
  Weather.parse(answer.toolCalls[0].input);
  assert.equal(answer.finishReason, "tool-calls");
});

test("a schema", async () => {
  const output = ai.Output.object({ schema: Person });
  const answer = await ai.generateText({ model, prompt: "Bob is 5 years old.", output });
  Person.parse(answer.output);
});

test("a schema, streamed", async () => {
  const output = ai.Output.object({ schema: Person });
  const answer = ai.streamText({ model, prompt: "Bob is 5 years old.", output });
  const parts = await all(answer.partialOutputStream);
  Person.parse(parts.at(-1));
});

test("errors", async () => {
  const ask = (more) => ai.generateText({ model: scripted, prompt: HI, maxRetries: 0, ...more });
  const failed = (status, message) => (error) => {
    assert.ok(ai.APICallError.isInstance(error), String(error));
    assert.equal(error.statusCode, status);
    assert.match(error.message, message);
    return true;
  };
  const other = provider(SCRIPTED)("other");
  const wrong = provider(SCRIPTED, "wrong")("default");
  await assert.rejects(ask({ model: other }), failed(404, /'other' is not served/));
  await assert.rejects(ask({ temperature: -1 }), failed(400, /temperature/));
  await assert.rejects(ask({ model, prompt: TOO_LONG }), failed(400, /context/));
  await assert.rejects(ask({ model: wrong }), failed(401, /API key is wrong/));
  await assert.rejects(ask({ prompt: "break" }), failed(500, /broke/));
});
